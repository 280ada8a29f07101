// What the page remembers: in the browser's storage, and in its own address, which can be passed on.
//
// `#span=60&sort=-requests&filter=items&open=GET%20/items&theme=dark`; what is as usual is left out.

/** What was stored; where a site may store nothing, choices last as long as the page. */
export function recall(name) {
  try {
    return localStorage.getItem(`metricsmw-${name}`);
  } catch {
    return null;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(`metricsmw-${name}`, value);
  } catch {
    // It may not.
  }
}

function fragment() {
  return new URLSearchParams(location.hash.slice(1));
}

/** The value of that name in the address, or null. */
export function inAddress(name) {
  return fragment().get(name);
}

/** All values of that name. */
export function allInAddress(name) {
  return fragment().getAll(name);
}

/** Put a value, or a list of them, into the address; null, "" or an empty list takes it out. */
export function putInAddress(name, value) {
  const parts = fragment();
  parts.delete(name);
  for (const each of [value ?? []].flat()) if (each !== "") parts.append(name, each);
  const text = parts.toString();
  const to = location.pathname + location.search + (text && `#${text}`);
  history.replaceState(history.state, "", to);
}
