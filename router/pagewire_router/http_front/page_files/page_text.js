"use strict";

/* A model's text as elements: headings, lists, tables, code. What is no markup stays as it is; nothing is ever HTML. */

function make(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).filter(Boolean).map((piece) => {
    if (/^`[^`\n]+`$/.test(piece)) return make("code", "", piece.slice(1, -1));
    if (/^\*\*[^*\n]+\*\*$/.test(piece)) return make("strong", "", piece.slice(2, -2));
    return piece;
  });
}

function codeBlock(language, text) {
  const head = make("div", "code-head", make("span", "", language));
  if (navigator.clipboard) {
    const copy = make("button", "quiet", "Copy");
    copy.type = "button";
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    });
    head.append(copy);
  }
  const pre = make("pre", "", text);
  pre.tabIndex = 0;
  return make("div", "code", head, pre);
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (name) => (line) => make("tr", "", ...cells(line).map((cell) => make(name, "", ...inline(cell))));
  const head = make("thead", "", row("th")(lines[0]));
  return make("div", "wide", make("table", "", head, make("tbody", "", ...lines.slice(2).map(row("td")))));
}

/* Kinds of blocks: how their lines begin, and what is made of them. */
const BLOCKS = [
  [/^#{1,6} /, (lines) => make("h3", "", ...inline(lines.join(" ").replace(/^#+ /, "")))],
  [/^\s*\|.*\|\s*$/, (lines) => (/^[\s|:-]+$/.test(lines[1] || "") ? table(lines) : paragraph(lines))],
  [/^\s*[-*+] /, (lines) => list("ul", lines, /^\s*[-*+] /)],
  [/^\s*\d{1,3}[.)] /, (lines) => list("ol", lines, /^\s*\d{1,3}[.)] /)],
];

function paragraph(lines) {
  return make("p", "", ...inline(lines.join("\n")));
}

function list(name, lines, mark) {
  const made = make(name, "", ...lines.map((line) => make("li", "", ...inline(line.replace(mark, "")))));
  if (name === "ol") made.start = parseInt(lines[0], 10);
  return made;
}

function prose(text) {
  const blocks = [];
  let lines = [];
  let kind = null;
  const end = () => {
    if (lines.length) blocks.push(kind ? kind[1](lines) : paragraph(lines));
    lines = [];
  };
  for (const line of text.split("\n")) {
    const found = BLOCKS.find(([start]) => start.test(line)) || null;
    if (!line.trim() || found !== kind || (kind && kind === BLOCKS[0])) end();
    kind = found;
    if (line.trim()) lines.push(line);
  }
  end();
  return blocks;
}

function showText(element, text) {
  const parts = text.split(/^\s{0,3}```([^\n`]*)\n?/m);
  const blocks = [];
  for (let i = 0; i < parts.length; i += 4) {
    blocks.push(...prose(parts[i]));
    if (i + 2 < parts.length) blocks.push(codeBlock(parts[i + 1].trim(), parts[i + 2].replace(/\n$/, "")));
  }
  element.replaceChildren(...blocks);
}

/* The arguments of a call, set out if they are whole. */
function setOut(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
