// The views' numbers, from 1, and how several of them are spoken of.

export const viewNumbers = (values) => values.shapes.map((_, i) => i + 1);
export const laterViews = (values) => viewNumbers(values).slice(1);
export const areMany = (values) => values.shapes.length > 2;
