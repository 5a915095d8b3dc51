// The first field takes the keyboard. The browser's own autofocus comes too early: the shell keeps
// the page hidden until its script has run, and what is hidden takes no focus.

requestAnimationFrame(() => document.querySelector("[autofocus]")?.focus());
