// The theme that was chosen, set before anything is drawn: a page that flashes hurts at night.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("quern.theme"));
} catch {
  // a browser that keeps nothing: the system's theme
}
