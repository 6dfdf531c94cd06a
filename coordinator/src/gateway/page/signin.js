// Signing in with an API key, where the gateway has keys.

import { field, h } from "./dom.js";

/** `known`: a key was sent and is not known. `use` is called with another one. */
export function signIn(main, known, use) {
  const key = h("input", { id: "key", type: "password", autocomplete: "current-password", placeholder: "tf-…", required: true });
  const submit = event => { event.preventDefault(); use(key.value.trim()); };
  main.replaceChildren(h("form.card.signin", { onsubmit: submit },
    h("h1", "Sign in"), h("p.hint", "This fleet requires an API key. It is stored only in this tab."),
    known ? h("p.late", { role: "alert" }, "This key is not valid.") : null,
    field("API key", key, "An operator creates one with ternfleet key new."), h("button", "Sign in")));
  key.focus();
}
