"""The picture of docs/policy.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pygal
from pygal.style import Style

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.policy.runs import Total

_SHOWN = {
    "hourly live, rest batch": "hourly live, the rest in batches",
    "llmrouter": "llmrouter's policy functions",
}
_STYLE = Style(
    background="#ffffff",
    plot_background="#ffffff",
    foreground="#333333",
    foreground_strong="#111111",
    foreground_subtle="#999999",
    opacity="1",
    colors=("#c9a227", "#1f6f8b", "#9bb8c4"),
    font_family="sans-serif",
    label_font_size=12,
    major_label_font_size=12,
    legend_font_size=13,
    title_font_size=16,
    value_label_font_size=10,
    value_font_size=10,
    value_colors=("#111111",) * 3,
)


def draw_picture(path: Path, worlds: dict[str, dict[str, Total]]) -> None:
    """Draws what each policy costs in each world, beside what it missed."""
    chart = pygal.HorizontalBar(
        style=_STYLE,
        js=[],
        width=1000,
        height=130 + 62 * len(worlds),
        title="Cost of what can wait, beside sending it all live (100 %), and deadlines missed",
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
        range=(0, 100),
        print_values=True,
        print_values_position="top",
        show_minor_x_labels=False,
        formatter=lambda value: f"{value:.1f} %",
        truncate_label=-1,
        truncate_legend=-1,
    )
    names = list(worlds)[::-1]
    chart.x_labels = names
    for policy, title in _SHOWN.items():
        chart.add(title, [_bar(worlds[name][policy]) for name in names])
    chart.add("clairvoyant lower bound", [100 * worlds[name]["llmrouter"].bound for name in names])
    chart.add_xml_filter(_without_scripts)
    path.write_text(chart.render(is_unicode=True) + "\n", encoding="utf-8")


def _bar(total: Total) -> dict[str, Any]:
    missed = 100 * total.share("missed")
    said = "none missed" if missed < 1e-7 else f"{missed:.2f} % missed"
    return {"value": 100 * total.cost, "formatter": lambda value: f"{value:.1f} %, {said}"}


def _without_scripts(root: Any) -> Any:
    for parent in list(root.iter()):
        for child in list(parent):
            if str(child.tag).endswith("script"):
                parent.remove(child)
    return root
