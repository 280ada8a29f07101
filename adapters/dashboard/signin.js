// The token of the server for a cookie: from the form, or from the page's address.

import { inAddress, putInAddress } from "./settings.js";

/** Ask for the cookie; answers with the response, or null where there was none. */
export function signIn(base, token) {
  // Headers take bytes, and a token may be any text.
  const bytes = String.fromCharCode(...new TextEncoder().encode(token.trim()));
  const headers = { Authorization: `Bearer ${bytes}` };
  return fetch(new URL("signin", base), { method: "POST", headers }).catch(() => null);
}

/** The same by `#token=…`, which reaches no server's log, and is taken out of the address at once; undefined without one. */
export async function signInByAddress(base) {
  const token = inAddress("token");
  if (!token) return undefined;
  putInAddress("token", null);
  return signIn(base, token);
}
