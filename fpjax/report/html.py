"""The report as one HTML file, without network and scripts: Jinja2 templates, every text escaped by them."""

import base64
from collections.abc import Sequence
from importlib import resources

import jinja2
from markupsafe import Markup, escape

from ..audit.results import AuditResult
from .images import Training, is_picture
from .sections import SECTIONS
from .sections.base import Page, Section
from .sections.verdict import VERDICT

_SYMBOLS = {
    "T": Markup("<i>t</i>"),
    "P": Markup("<i>p</i>"),
    "T_PRIME": Markup("<i>t</i>′"),
    "T_ALPHA": Markup("<i>t</i>′<sub>α</sub>"),
    "T50": Markup("<i>t</i><sub>50</sub>"),
    "QM": Markup("<i>q<sub>M</sub></i>(<i>t</i>)"),
    "Q": Markup("|<i>q</i>|"),
    "CP": Markup("<i>c<sub>p</sub></i>"),
    "CID": Markup("<i>c</i><sub>id</sub>"),
}
# In labels as the terminal has them; longest first, and escaped before.
_IN_LABELS = {
    "t&#39;_alpha": _SYMBOLS["T_ALPHA"],
    "t&#39;": _SYMBOLS["T_PRIME"],
    "t50": _SYMBOLS["T50"],
    "c_id+": _SYMBOLS["CID"] + "⁺",
    "c_p+": _SYMBOLS["CP"] + "⁺",
    "|q|": _SYMBOLS["Q"],
    "+-": Markup("±"),
}


def _symbols(label: str) -> Markup:
    """A label, escaped, with its symbols set; what is set already stays."""
    if isinstance(label, Markup):
        return label
    text = str(escape(label))
    for plain, symbol in _IN_LABELS.items():
        text = text.replace(plain, str(symbol))
    return Markup(text)


def _cell(text: str) -> Markup:
    """A cell, escaped, with the signs that a terminal spells out."""
    return Markup(str(escape(text)).replace("+-", "±").replace("&gt;= ", "≥ "))


def environment() -> jinja2.Environment:
    """The templates, with every text escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("fpjax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= _SYMBOLS
    made.filters |= {
        "symbols": _symbols,
        "cell": _cell,
        "is_picture": is_picture,
        "base64": lambda content: base64.b64encode(content).decode(),
    }
    return made


def to_html(
    result: AuditResult,
    figures: dict[str, bytes],
    training: Training,
    *,
    show_members: bool,
    sections: Sequence[Section] = SECTIONS,
) -> str:
    """The report as one HTML file, without network and scripts.

    Args:
      result: the audit.
      figures: of `draw_figures`, embedded as data URIs.
      training: of the score network.
      show_members: False leaves out every picture, whatever `figures` holds.
      sections: of the page, in order, beneath the verdict.
    """
    templates, page = environment(), Page(result, figures, training, show_members)

    def render(section: Section) -> Markup:
        context = page._asdict() | section.context(page)
        return Markup(templates.get_template(section.template).render(context))

    return templates.get_template("page.html").render(
        name=result.name,
        css=Markup(resources.files("fpjax.report").joinpath("report.css").read_text()),
        verdict=render(VERDICT),
        sections=[(section, render(section)) for section in sections if section.shown(page)],
    )
