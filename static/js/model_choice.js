// Which model answers: offered where there is more than one, and the one that answered last stays chosen.

import { get } from "./chat_api.js";
import { element } from "./dom.js";

export class ModelChoice {
  // `last`: the model of the conversation's newest answer, if there is one.
  constructor(place, last) {
    this.place = place;
    this.wanted = last;
    this.list = place.querySelector("select");
    this.list.addEventListener("change", () => this.#chosen(this.list.value));
  }

  // What to ask for; undefined: whichever answers who names none.
  get name() {
    return this.place.hidden ? undefined : this.list.value;
  }

  async load() {
    this.models = (await get("/api/v1/models"))?.models ?? [];
    const chosen = this.models.find(({ name }) => name === this.wanted) ?? this.models.find((one) => one.is_default) ?? this.models[0];
    this.list.replaceChildren(...this.models.map(({ name }) => element("option", { text: name, attributes: { value: name } })));
    this.place.hidden = this.models.length < 2;
    if (chosen) this.#chosen(chosen.name);
  }

  #chosen(name) {
    this.wanted = this.list.value = name;
    // what the page says of the environment's model is not true of another
    for (const one of document.querySelectorAll("[data-of-model]")) one.hidden = one.dataset.ofModel !== name;
    const answers = document.getElementById("answers");
    answers.textContent = this.place.hidden && !document.querySelector("[data-of-model]:not([hidden])") ? `${name} answers. ` : "";
    this.list.title = this.models.find((one) => one.name === name)?.description ?? "";
  }
}
