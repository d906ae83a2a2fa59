"""The page: self-contained, escaped, honest about what is missing; the figures readable on both themes."""

from __future__ import annotations

import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from raybrew.errors import EnvironmentProblem, RunError
from raybrew.records.runs import load_runs
from raybrew.reports.compare import compare
from raybrew.reports.figures.parts import COLORS, MAX_POINTS, Plot, log_axis
from raybrew.reports.figures.runs import all_plots
from raybrew.reports.html import render_report, write_report
from unit.reports_helpers import make_run

HOSTILE = "<script>alert('x')</script> & \"quotes\" {{ 7 * 7 }} %{x}"


class Page(html.parser.HTMLParser):
    """Visible text, tags with attributes, and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._texts: list[str] = []
        self._inside: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self._texts.append(data)
        elif self._inside[-1] == "script":
            self.scripts[-1] += data

    @property
    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(script) for script in self.scripts if script.lstrip().startswith('{"data"')]


def page_of(path: Path, **options: Any) -> Page:
    return Page(render_report(load_runs([path]), **options))


def full(path: Path) -> None:
    make_run(path, "teacher", accuracy=0.95, steps=300, latency=(6.05, 0.95))
    for seed in range(3):
        resumed = ((500, "interrupted", "stopped after step 500"), (500, "resumed", "resumed at step 500"))
        make_run(
            path,
            seed=seed,
            accuracy=0.9 + 0.01 * seed,
            teacher_accuracy=0.95,
            teacher_latency=(6.05, 0.95),
            events=resumed,
        )
        make_run(path, "control", seed=seed, accuracy=0.88, teacher_accuracy=0.95)
    make_run(path, seed=9, done=False)


def test_a_page_about_many_runs(tmp_path: Path) -> None:
    full(tmp_path)
    page = page_of(tmp_path, title="Which student?", now="2026-01-02")
    text = page.text
    for part in (
        "Which student? 8 runs of reviews, 2026-01-02 Best student: BERT 4x312 reaches 91.0 ± 2.3 accuracy",
        "1.6x smaller, 5.0x faster one row at a time",
        "+3.0 (−0.1 to +6.1)",
        "One run has not finished",
        "raybrew distill experiments/reviews.yaml train.seed=2",
        "interrupted stopped after step 500",
        "temperature: 8.0",
        "8 x AMD EPYC 7763, 1 x NVIDIA H200",
        "torch 2.13.0",
        "running or interrupted",
        "summary.json is missing: the run has not finished",
    ):
        assert part in text, part
    assert text.index("Best student") < text.index("Comparison") < text.index("Figures") < text.index("Runs")
    titles = [figure["layout"] for figure in page.figures]
    assert len(titles) == 5 + 4, "three Pareto plots, curves, rates and a loss plot for each of four rows"


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    full(tmp_path)
    text = render_report(load_runs([tmp_path]))
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "base")
    policy = next(
        attributes["content"] for _, attributes in page.tags if "Content-Security-Policy" in attributes.values()
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1, "one copy of plotly.js"
    assert len(text) < 6_000_000


def test_user_text_is_escaped_everywhere(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(
            tmp_path,
            seed=seed,
            student={"description": HOSTILE},
            events=((3, HOSTILE, HOSTILE),),
            changes={"data": {"train": f"{HOSTILE}.tsv"}, "task": {"labels": ["</script>", HOSTILE]}},
            summary={"device": HOSTILE},
        )
    make_run(tmp_path, student={"description": HOSTILE}, changes={"distill": {"temperature": HOSTILE}})
    text = render_report(load_runs([tmp_path]), title=f"</title>{HOSTILE}")
    assert "<script>alert" not in text
    page = Page(text)
    assert page.text.count("<script>alert('x')</script>") > 5, "shown as text"
    assert "{{ 7 * 7 }}" in page.text, "not a template"
    assert [tag for tag, _ in page.tags if tag == "title"] == ["title"]
    # One per figure, plotly.js, and the page's own.
    assert len(page.scripts) == len(page.figures) + 2
    for figure in page.figures:
        for trace in figure["data"]:
            # plotly reads HTML in these.
            assert "<script" not in trace.get("name", "") + str(trace.get("text", "")) + str(
                trace.get("hovertemplate", "")
            )
            assert "alert" not in str(trace.get("hovertemplate", ""))
    groups = {attributes.get("data-group") for tag, attributes in page.tags if tag == "button"}
    shown = {trace["legendgroup"] for figure in page.figures for trace in figure["data"]}
    assert shown == groups, "every legend entry finds its lines"


def test_one_run_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", accuracy=0.9)
    written = write_report([folder], folder / "report.html", title="one")
    assert written == folder / "report.html"
    page = Page(written.read_text(encoding="utf-8"))
    assert "1 run of reviews" in page.text
    assert "Best student: BERT 4x312 reaches 90.0 ± 2.0 accuracy on 872 rows of data.eval" in page.text
    assert "vs labels only not measured" in page.text
    assert [path.name for path in folder.iterdir() if "report" in path.name] == ["report.html"]
    details = [attributes for tag, attributes in page.tags if tag == "details"]
    assert "open" in details[0]
    assert "open" not in details[1], "the configuration is collapsed"


def test_a_teacher_alone(tmp_path: Path) -> None:
    make_run(tmp_path, "teacher", accuracy=0.95)
    page = page_of(tmp_path)
    assert "The teacher all-MiniLM-L6-v2 reaches 95.0 ± 1.5 accuracy on 872 rows of data.eval. No student" in page.text
    assert len(page.figures) == 3


def test_an_unfinished_run_alone_has_no_invented_numbers(tmp_path: Path) -> None:
    make_run(tmp_path, done=False)
    page = page_of(tmp_path)
    assert "No run has finished yet. Best so far: 4x312, 8" in page.text
    assert not any(attributes.get("class") == "tile" for _, attributes in page.tags)
    table = page.text[page.text.index("Comparison") : page.text.index("Figures")]
    assert "parameters" not in table, "columns without any value are left out"
    assert " 0 " not in table


def test_a_run_that_left_almost_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "reviews" / "distill-0"
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text("{}")
    page = page_of(folder)
    assert "No run has finished yet. Nothing has been evaluated so far." in page.text
    for part in (
        "config.yaml is missing",
        "metrics.jsonl is missing or empty",
        "there is no evaluation",
        "not recorded",
    ):
        assert part in page.text, part
    assert page.scripts == [], "without figures there is no plotly.js"


def test_finished_without_evaluation(tmp_path: Path) -> None:
    folder = make_run(tmp_path, summary={"best": None})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [json.dumps(line) for line in lines if line["kind"] != "eval"]
    (folder / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    page = page_of(tmp_path)
    assert "nothing was evaluated" in page.text
    assert "14.4 M" in page.text
    make_run(tmp_path, "teacher", accuracy=0.95)
    assert "The students that have finished were not evaluated." in page_of(tmp_path).text


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at least one run"):
        render_report([])
    run = make_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot write the report"):
        write_report([run], tmp_path / "file" / "report.html")


def plots_of(path: Path) -> dict[str, Plot]:
    return {plot.name: plot for plot in all_plots(compare(load_runs([path])))}


def test_figures_show_what_was_stored(tmp_path: Path) -> None:
    full(tmp_path)
    plots = plots_of(tmp_path)
    runs = load_runs([tmp_path])
    curves = plots["curves"].figure.data
    student = [trace for trace in curves if trace.name == "BERT 4x312" and trace.opacity == 1]
    assert len(student) == 1
    assert list(student[0].x) == list(range(100, 1001, 100))
    finals = [run.evals[-1].value("accuracy") for run in runs if run.role == "student" and run.status == "done"]
    assert student[0].y[-1] == pytest.approx(100 * sum(finals) / 3)
    assert sum(trace.opacity == 0.4 for trace in curves) == 6
    teacher = next(trace for trace in curves if trace.name.startswith("teacher"))
    assert list(teacher.y) == [95.0, 95.0]
    size = plots["pareto-parameters"]
    points = {trace.name: trace for trace in size.figure.data}
    assert points["BERT 4x312"].x[0] == 14_351_000
    assert points["BERT 4x312"].y[0] == pytest.approx(91.0)
    assert points["BERT 4x312"].error_y.array[0] == pytest.approx(2.3, abs=0.05), "half of the interval"
    assert list(points["Pareto front"].y) == [pytest.approx(91.0), pytest.approx(95.0)]
    assert [entry.text for entry in size.legend] == [
        "teacher all-MiniLM-L6-v2", "BERT 4x312", "control BERT 4x312", "Pareto front",
    ]  # fmt: skip
    # All students share one schedule, which is drawn once; the unfinished one stops halfway.
    assert [entry.text for entry in plots["rates"].legend] == [
        "teacher all-MiniLM-L6-v2", "BERT 4x312 and 1 more", "BERT 4x312 (seed 9)",
    ]  # fmt: skip
    assert [entry.text for entry in plots["loss-2"].legend] == ["total", "label", "kd", "hidden_mse"]


def test_legends_tell_every_configuration_apart(tmp_path: Path) -> None:
    settings = [{"temperature": float(t), "kd_weight": w, "hard_label_weight": h, "probability_shift": s}
                for t in (1, 2, 4) for w in (0.5, 1.0) for h in (0.0, 0.5) for s in (True, False)]  # fmt: skip
    for number, distill in enumerate(settings):
        make_run(tmp_path, accuracy=0.8 + 0.002 * number, changes={"distill": distill})
    plots = plots_of(tmp_path)
    for name in ("pareto-parameters", "curves"):
        legend = plots[name].legend
        assert len({entry.text for entry in legend}) == len(legend)
        assert len({(entry.color, entry.mark) for entry in legend}) == len(legend)


def test_no_pareto_figure_where_all_cost_the_same(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9)
    make_run(tmp_path, "control", accuracy=0.88)
    assert [name for name in plots_of(tmp_path) if name.startswith("pareto")] == ["pareto-parameters"]


@pytest.mark.parametrize("values", [[0.19], [0.19, 0.1901], [1.0, 3.0], [3e-4, 0.2], [0.05, 20.0], [1e6, 1.1e9]])
def test_logarithmic_axes_have_a_few_ticks_within_their_range(values: list[float]) -> None:
    axis = log_axis(values, str)
    low, high = axis["range"]
    assert 1 <= len(axis["tickvals"]) <= 6
    assert len(axis["tickvals"]) == len(set(axis["ticktext"])) or len(values) == 1
    assert all(low <= math.log10(tick) <= high for tick in [*axis["tickvals"], *values])


def test_long_runs_are_thinned_out_and_keep_their_ends(tmp_path: Path) -> None:
    make_run(tmp_path, steps=30_000)
    plot = plots_of(tmp_path)["loss-1"]
    for trace in plot.figure.data:
        assert len(trace.x) <= MAX_POINTS + 1
        assert (trace.x[0], trace.x[-1]) == (10, 30_000)


def test_not_finite_losses_leave_gaps_not_errors(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 1010, "kind": "train", "loss": "nan", "loss/kd": "inf"}\n')
    assert max(plots_of(tmp_path)["loss-1"].figure.data[0].x) == 1000
    render_report(load_runs([tmp_path]))


def contrast(one: str, two: str) -> float:
    """Contrast ratio of WCAG 2."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_colours_stand_out_on_both_themes() -> None:
    css = (Path(__file__).parents[3] / "raybrew/reports/templates/report.css.j2").read_text(encoding="utf-8")
    cards = re.findall(r"--card: (#[0-9a-f]{6})", css)
    assert len(cards) == 2
    for color in COLORS:
        for card in cards:
            assert contrast(color, card) >= 3, (color, card, contrast(color, card))
    for theme, card in zip(re.findall(r":root \{(.*?)\}", css, re.DOTALL), cards, strict=True):
        for name in ("ink", "muted", "accent", "good", "warn", "bad"):
            (color,) = re.findall(rf"--{name}: (#[0-9a-f]{{6}})", theme)
            assert contrast(color, card) >= 4.5, (name, color, card)
