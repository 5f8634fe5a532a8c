// An explorer on a page with stored data, and in a notebook with a kernel that hears what is shown.

import { element } from "./dom.js";

/** What anywidget and pages need of an explorer. `Explorer`: a class, made of an element and { catalog, start() ->
    settings, shown, send(settings) }, with `shown`, `show()` and `close()`. */
export function figureOf(Explorer) {
  /** On a page with what `store` gives. Returns the explorer. */
  const mount = (root, { catalog, start }) =>
    new Explorer(root, { catalog, start: () => start, shown: start, send: () => null });

  const render = ({ model, el }) => {
    const root = element("div", {});
    el.append(root);
    const send = (shown) => {
      model.set("shown", shown);
      model.save_changes();
    };
    const start = () => model.get("start");
    const explorer = new Explorer(root, { catalog: model.get("catalog"), start, shown: model.get("shown"), send });
    const told = () => {
      explorer.shown = model.get("shown");
      explorer.show();
    };
    model.on("change:shown", told);
    return () => {
      model.off("change:shown", told);
      explorer.close();
    };
  };
  return { mount, render };
}
