// The page's state: one small store that every part reads and watches.

export function createState(initial) {
  const values = { ...initial };
  const watchers = [];
  return {
    values,
    set(changes) {
      const changed = Object.keys(changes).filter((name) => values[name] !== changes[name]);
      Object.assign(values, changes);
      for (const { names, notify } of watchers) if (names.some((name) => changed.includes(name))) notify(values);
    },
    // Calls back at once and after every change of one of these values.
    watch(names, notify) {
      watchers.push({ names, notify });
      notify(values);
    },
  };
}
