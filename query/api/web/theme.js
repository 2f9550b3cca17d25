// Before the first paint: the colours that were chosen the last time. A plain script, for modules run too late.
"use strict";
try {
  const chosen = window.localStorage.getItem("hubhound-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Without storage the system's colours are used.
}
