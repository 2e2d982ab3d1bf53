// The theme that was chosen, set before anything is drawn: a page that flashes hurts at night.
try {
  const theme = JSON.parse(localStorage.getItem("quern.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // a browser that keeps nothing: the system's theme
}
