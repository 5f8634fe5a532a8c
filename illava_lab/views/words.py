"""Words that come from people and models, for what would read markup in them: they are shown as they are."""

from __future__ import annotations

import html

# plotly reads tags and entities in titles, legends, ticks and hover texts, as HTML does: the same escape serves both.


def as_html(words: object) -> str:
    """For HTML widgets, and for every text of a plotly figure. `html.unescape` gives the words back."""
    return html.escape(str(words), quote=False)


def as_label(words: object) -> str:
    """For matplotlib, which sets what stands between two dollar signs as mathematics."""
    return str(words).replace("$", r"\$")
