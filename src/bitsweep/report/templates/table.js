// The table of cells: sorted by any column, filtered by any of them. Whatever it shows of names goes through textContent.
const table = document.querySelector("#cells");
const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], rows = [...body.rows];
const filters = heads.map(() => "");
const whenFiltered = [];

const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
const isNumber = text => text !== "" && !isNaN(text);

// Numbers by their size, words by the alphabet, and what is empty last, in both directions.
function sortBy(head) {
  const column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (isNumber(a) && isNumber(b) ? a - b : a.localeCompare(b));
  };
  rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column)));
  body.append(...rows);
}

// What a filter lets through: "<5", ">=90" or "1..2" of numbers; else words, of which "|" separates alternatives.
function test(filter) {
  const bound = filter.match(/^\s*(<=|>=|<|>|=)\s*(-?[\d.]+)\s*$/), range = filter.match(/^\s*(-?[\d.]+)\s*\.\.\s*(-?[\d.]+)\s*$/);
  const number = check => value => isNumber(value) && check(+value);
  if (bound) {
    const limit = +bound[2];
    const checks = { "<": x => x < limit, ">": x => x > limit, "<=": x => x <= limit, ">=": x => x >= limit, "=": x => x === limit };
    return number(checks[bound[1]]);
  }
  if (range) return number(x => x >= +range[1] && x <= +range[2]);
  const words = filter.toLowerCase().split("|").map(word => word.trim()).filter(Boolean);
  return (value, text) => !words.length || words.some(word => text.toLowerCase().includes(word));
}

function applyFilters() {
  const tests = filters.map((filter, column) => [column, test(filter)]).filter(([column]) => filters[column].trim());
  let left = 0;
  for (const row of rows) {
    row.hidden = !tests.every(([column, passes]) => passes(valueOf(row, column), row.cells[column].textContent));
    left += !row.hidden;
  }
  document.querySelector("#count span").textContent = `${left} of ${rows.length} cells`;
  document.querySelector("#count button").hidden = !tests.length;
  for (const tell of whenFiltered) tell();
}

const line = table.tHead.insertRow();
line.className = "filters";
heads.forEach((head, column) => {
  const place = line.insertCell();
  if (head.className === "links") return;
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.onclick = () => sortBy(head);
  head.append(button);
  const input = document.createElement("input");
  const figure = rows.some(row => row.cells[column].className === "figure");
  input.type = "search";
  input.setAttribute("aria-label", `filter by ${head.textContent}`);
  if (figure) input.placeholder = "< 1";
  else {
    const texts = [...new Set(rows.map(row => row.cells[column].textContent))].filter(Boolean);
    if (texts.length > 1 && texts.length <= 30) {
      const list = document.createElement("datalist");
      list.id = `values-${column}`;
      list.append(...texts.map(text => Object.assign(document.createElement("option"), { value: text })));
      place.append(list);
      input.setAttribute("list", list.id);
    }
  }
  let waiting;
  input.oninput = () => {
    filters[column] = input.value;
    clearTimeout(waiting);
    waiting = setTimeout(applyFilters, 80);
  };
  place.append(input);
});
document.querySelector("#count button").onclick = () => {
  for (const input of line.querySelectorAll("input")) input.value = "";
  filters.fill("");
  applyFilters();
};
for (const part of document.querySelectorAll(".interactive")) part.hidden = false;
applyFilters();

// A link to the pictures of a cell opens them.
document.addEventListener("click", event => {
  const link = event.target.closest?.("a[href^='#cell-']");
  const pictures = link && document.querySelector(link.getAttribute("href"));
  if (pictures) pictures.closest("details").open = true;
});
