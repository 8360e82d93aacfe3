// What is wider than the page can be scrolled by keys too.
addEventListener("load", () => {
  for (const box of document.querySelectorAll("pre, .table-wrapper, div.math")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
