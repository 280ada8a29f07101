// The token of the server for a cookie: from the form, or from the page's address.

import { inAddress, putInAddress } from "./settings.js";

/** Ask for the cookie; answers with the response, or null where there was none. */
export function signIn(base, token) {
  // Headers take bytes, and a token may be any text.
  const bytes = String.fromCharCode(...new TextEncoder().encode(token.trim()));
  const headers = { Authorization: `Bearer ${bytes}` };
  return fetch(new URL("signin", base), { method: "POST", headers }).catch(() => null);
}

/** Sign in by `#token=…`, which reaches no server's log, and take it out of the address at once. */
export async function signInByAddress(base) {
  const token = inAddress("token");
  if (!token) return false;
  putInAddress("token", null);
  return (await signIn(base, token))?.ok ?? false;
}
