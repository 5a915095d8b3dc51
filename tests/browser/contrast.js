// The contrast of each visible text against the ground it stands on (WCAG 2.2, 1.4.3), as drawn:
// those below 4.5:1, icons below 3:1.
() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pixel = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = color;
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (one) => {
    const layers = [];
    for (let at = one; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] > 0) layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const isDrawn = (one) => {
    const { width, height } = one.getBoundingClientRect();
    return width >= 2 && height >= 2 && one.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  };

  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data.trim(), one = walk.currentNode.parentElement;
    if (!text || one.closest("script, style, noscript, :disabled") || !isDrawn(one)) continue;
    const least = one.classList.contains("material-symbols-outlined") ? 3 : 4.5;
    const { color } = getComputedStyle(one), below = ground(one);
    if (rgba(color)[3] === 0) continue; // left out on purpose: it only keeps its place
    const [high, low] = [light(over(rgba(color), below)), light(below)].sort((x, y) => y - x);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < least) bad.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}, ${color} on ${below.slice(0, 3).map(Math.round)}`);
  }
  return bad;
}
