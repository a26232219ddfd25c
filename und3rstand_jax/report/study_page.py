"""Studies as one HTML page: for each its question, findings, figures and tables. The files beside it contain every number.

The page opens from disk and loads nothing else: figures are embedded in it.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from matplotlib.figure import Figure

from und3rstand_jax.analysis.studies.study import Study, Table
from und3rstand_jax.support.text import printable

PAGE = "index.html"

_DPI = 110


def study_page(studies: Sequence[Study], title: str, facts: Mapping[str, str]) -> str:
    """The page's HTML, in ASCII.

    Args:
        studies: the studies, in the order of the page.
        title: the heading.
        facts: what the studies were run on and with, by name.
    """
    web = files("und3rstand_jax.report").joinpath("web")
    texts = {
        "title": html.escape(printable(title)),
        "style": web.joinpath("studies.css").read_text("utf-8"),
        "facts": "\n".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items()),
        "contents": "\n".join(f'<li><a href="#{study.name}">{_text(study.name)}</a> {_text(study.title)}</li>' for study in studies),
        "studies": "\n".join(map(_section, studies)),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: texts[match[1]], web.joinpath("studies.html").read_text("utf-8"))
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _section(study: Study) -> str:
    figures = "\n".join(_figure(study, end, figure) for end, figure in study.figures.items())
    findings = "\n".join(f"<li>{_text(finding)}</li>" for finding in study.findings)
    meaning = "\n".join(f"<div><dt>{_text(name)}</dt><dd>{_text(text)}</dd></div>" for name, text in study.meaning.items())
    return f"""<section id="{study.name}" aria-labelledby="{study.name}-title">
<h2 id="{study.name}-title">{_text(study.title)}</h2>
<ul class="findings">
{findings}
</ul>
{figures}
{"".join(map(_table, study.tables))}
<details><summary>What the names in the files mean</summary><dl>
{meaning}
</dl></details>
<p class="files">Every number: <a href="{study.name}.csv">{study.name}.csv</a>, with those of every pair and all that they depend on:
<a href="{study.name}.json">{study.name}.json</a></p>
</section>"""


def _figure(study: Study, end: str, figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    data = base64.b64encode(file.getvalue()).decode()
    name = f"{study.title}{f': {end}' if end else ''}"
    return f'<figure><img alt="{_text(name)}" src="data:image/png;base64,{data}"></figure>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>' for row in table.rows
    )
    # Reached by keyboard, so that a wide table can be scrolled without a mouse.
    scrolled = f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.title)}">'
    return f"{scrolled}<table><caption>{_text(table.title)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _text(text: object) -> str:
    return html.escape(printable(text))
