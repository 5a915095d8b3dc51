// The admin's search fields for a row of another table (select2) name themselves by what is chosen in them,
// so an empty one has no name: screen readers are given the label as well.

window.addEventListener("load", () => {
  for (const field of document.querySelectorAll("select.admin-autocomplete")) {
    const label = document.querySelector(`label[for="${field.id}"]`);
    const box = field.nextElementSibling?.querySelector("[role=combobox]");
    if (!label || !box) continue;
    label.id ||= `${field.id}_label`;
    box.setAttribute("aria-labelledby", `${label.id} ${box.getAttribute("aria-labelledby") ?? ""}`);
    box.querySelector("[role=textbox]")?.setAttribute("aria-labelledby", label.id);
  }
});
