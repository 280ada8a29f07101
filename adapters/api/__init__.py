"""The sub-app: its requests and responses, routes and policies, and the apps that serve them."""
