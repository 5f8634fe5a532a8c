// An explorer on a page with stored data, and in a notebook with a kernel that hears what is shown.

import { element } from "./dom.js";

/** What anywidget and pages need of an explorer. `Explorer`: a class, made of an element and { catalog, numbers() -> what a
    kernel makes of them, start() -> settings, shown, send(settings) }, with `shown`, `show()` and `close()`. */
export function figureOf(Explorer) {
  /** On a page with what `store` gives. Returns the explorer. */
  const mount = (root, { catalog, start, numbers }) =>
    new Explorer(root, { catalog, numbers: () => numbers, start: () => start, shown: start, send: () => null });

  const render = ({ model, el }) => {
    const root = element("div", {});
    el.append(root);
    const send = (shown) => {
      model.set("shown", shown);
      model.save_changes();
    };
    const start = () => model.get("start");
    const numbers = () => model.get("numbers");
    const source = { catalog: model.get("catalog"), numbers, start, shown: model.get("shown"), send };
    const explorer = new Explorer(root, source);
    const told = () => {
      explorer.shown = model.get("shown");
      explorer.show();
    };
    const counted = () => explorer.show();
    model.on("change:shown", told);
    model.on("change:numbers", counted);
    return () => {
      model.off("change:shown", told);
      model.off("change:numbers", counted);
      explorer.close();
    };
  };
  return { mount, render };
}
