"use strict";
(() => {
  const root = document.documentElement, theme = document.getElementById("theme");
  const paint = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    theme.textContent = dark ? "Light" : "Dark";
  };
  paint(matchMedia("(prefers-color-scheme: dark)").matches);
  theme.addEventListener("click", () => paint(root.dataset.theme !== "dark"));

  const facts = document.getElementById("facts").textContent;
  const save = (name, kind, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  document.getElementById("json").addEventListener("click", () => save("report.json", "application/json", facts));
  const quoted = (value) => {
    const text = value === null ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  for (const button of document.querySelectorAll("button.save")) {
    button.addEventListener("click", () => {
      const { part, table } = button.dataset, rows = JSON.parse(facts).parts[part][table];
      const lines = rows.length ? [Object.keys(rows[0]), ...rows.map(Object.values)] : [];
      save(`${part}-${table}.csv`, "text/csv", lines.map((line) => line.map(quoted).join(",") + "\r\n").join(""));
    });
  }

  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  document.addEventListener("pointerover", (event) => {
    const told = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (!told) return hide();
    tip.textContent = told.dataset.tip;
    tip.hidden = false;
    const at = told.getBoundingClientRect(), mine = tip.getBoundingClientRect();
    const x = at.left + at.width / 2 - mine.width / 2, y = at.top - mine.height - 8;
    tip.style.left = `${Math.max(6, Math.min(innerWidth - mine.width - 6, x))}px`;
    tip.style.top = `${y < 6 ? at.bottom + 8 : y}px`;
  });
  addEventListener("scroll", hide, { passive: true });
})();
