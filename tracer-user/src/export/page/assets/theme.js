// Runs before the first paint, so that nobody is blinded at night: light, dark, or what the system says.
"use strict";
(() => {
  const KEY = "sdtrace-theme";
  const ORDER = ["system", "light", "dark"];
  const read = () => {
    try {
      const kept = localStorage.getItem(KEY);
      return ORDER.includes(kept) ? kept : "system";
    } catch {
      return "system"; // No storage: the switch works until the page is closed.
    }
  };
  let theme = read();
  const apply = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `theme: ${theme}`;
    document.dispatchEvent(new Event("theme"));
  };
  apply();
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // As above.
      }
      apply();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  });
})();
