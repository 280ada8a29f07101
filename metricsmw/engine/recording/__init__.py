"""What one worker does for each request, into the segment that only it writes."""
