// What is wrong with the page as it is drawn: what stands out of the window, and text that is cut
// without saying so. Each finding is one line.
() => {
  const found = [];
  const name = (one) => `<${one.tagName.toLowerCase()}${one.id ? "#" + one.id : ""}${one.className && typeof one.className === "string" ? "." + one.className.trim().split(/\s+/).slice(0, 3).join(".") : ""}> ${one.textContent.trim().slice(0, 40)}`;
  const shown = (one) => one.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const scrolls = (one) => /auto|scroll/.test(getComputedStyle(one).overflowX);
  const hides = (one) => /hidden|clip/.test(getComputedStyle(one).overflowX);

  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) found.push(`the page scrolls sideways: ${root.scrollWidth} of ${innerWidth}`);

  // Wider than what it stands in is allowed only in what scrolls by itself or cuts on purpose.
  for (const one of document.body.querySelectorAll("*")) {
    const { left, right, width, height } = one.getBoundingClientRect();
    if (!width || !height || (left >= -1 && right <= innerWidth + 1) || !shown(one)) continue;
    if (one.closest("svg") && one.tagName !== "svg") continue;
    let at = one.parentElement, kept = getComputedStyle(one).position === "fixed" && right <= 1;
    for (; at && !kept; at = at.parentElement) kept = scrolls(at) || hides(at);
    if (!kept) found.push(`out of the window (${Math.round(left)} to ${Math.round(right)}): ${name(one)} in ${name(one.parentElement).slice(0, 60)}`);
  }

  // Text that its box cuts off, without an ellipsis and without the whole in a title.
  const seen = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode, parent = text.parentElement;
    if (!text.data.trim() || parent.closest("script, style, noscript, .material-symbols-outlined, select, option") || !shown(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    const box = range.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;
    for (let at = parent; at && at !== document.body; at = at.parentElement) {
      const style = getComputedStyle(at), frame = at.getBoundingClientRect();
      if (frame.width <= 2 || frame.height <= 2) break; // for screen readers only
      if (/auto|scroll/.test(style.overflowX + style.overflowY)) break;
      if (!/hidden|clip/.test(style.overflowX + style.overflowY)) continue;
      const sideways = box.right > frame.right + 2 || box.left < frame.left - 2;
      const down = box.bottom > frame.bottom + 3 || box.top < frame.top - 3;
      const says = style.textOverflow === "ellipsis" || style.webkitLineClamp !== "none" || parent.closest("[title]") || at.closest("[title]");
      if ((sideways || down) && !says && !seen.has(at)) {
        seen.add(at);
        found.push(`cut ${sideways ? "sideways" : "below"}: ${name(at)}: ${text.data.trim().slice(0, 40)}`);
      }
      break;
    }
  }
  return found;
}
