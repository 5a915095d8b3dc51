// Enter sends, from the first moment on: loaded with the form, before the page's modules. What is sent before
// chat.js is there waits for it (chat.js looks for data-waiting).
(() => {
  const form = document.getElementById("ask");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!("ready" in form.dataset)) form.dataset.waiting = "";
  });
  document.getElementById("message").addEventListener("keydown", (event) => {
    // 229: an input method at work, in browsers that say so a moment too late
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    form.requestSubmit();
  });
})();
