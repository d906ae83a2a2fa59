"""capture: run the teacher once over all training and evaluation rows and keep what students will ask for."""

from __future__ import annotations

from raybrew.config import Experiment, StudentConfig
from raybrew.config.task import WHY_LIVE
from raybrew.data.cautions import tell
from raybrew.errors import ConfigError
from raybrew.models.loading import ModelSource
from raybrew.pipeline.model_checks import renamed_outputs, unnamed_outputs, whose
from raybrew.pipeline.objective import check_functions, likely_objective
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.pipeline.resolve import Resolved, label_of, resolve
from raybrew.pipeline.rows import check_teacher_labels, read_rows
from raybrew.pipeline.teachers import capture_table
from raybrew.pipeline.units import captured_units, check_lengths
from raybrew.pipeline.vocabulary import student_tokens
from raybrew.signals import LOGITS, parse_signal, sorted_signals
from raybrew.store.manifest import captured_labels
from raybrew.store.reader import Store

__all__ = ["capture", "capture_all"]


def capture(
    experiment: Experiment,
    *,
    task: str | None = None,
    teacher: str | None = None,
    teacher_run: str | None = None,
    reporter: Reporter | None = None,
    verify: bool = False,
) -> Store:
    """The teacher's store for this experiment, with everything its objective and `store.signals` ask for.

    `task` and `teacher` choose one of several. Rows, signals and whole stores that exist are not computed again; killed
    at any moment, the same call finishes the missing shards. `verify` also reads all that is stored and computes anew
    what is damaged.
    """
    found = capture_all(
        experiment, task=task, teacher=teacher, teacher_run=teacher_run, reporter=reporter, verify=verify
    )
    if len(found) > 1:
        raise ConfigError(f"teacher: this experiment has several, choose one or capture_all: {', '.join(found)}")
    return next(iter(found.values()))


def capture_all(
    experiment: Experiment,
    *,
    task: str | None = None,
    teacher: str | None = None,
    teacher_run: str | None = None,
    reporter: Reporter | None = None,
    verify: bool = False,
) -> dict[str, Store]:
    """The stores of all teachers of all tasks, or of those that `task` and `teacher` choose, by name."""
    reporter = reporter or QuietReporter()
    resolved = resolve(experiment, teacher_run=teacher_run)
    check_functions(resolved, reporter.say)
    tasks = resolved.chosen(task)
    shape = resolved.shape
    student = _student_tokens(resolved, shape, reporter)
    found: dict[str, Store] = {}
    for each in tasks:
        if each.task.masking is not None:
            raise ConfigError(f"task.kind: masked_lm has nothing to capture: {WHY_LIVE}; distill runs the teacher live")
        chosen = each.chosen(teacher)
        rows = read_rows(each, each.first_source, reporter.say)
        request = sorted_signals(likely_objective(each, rows.labels.names, shape).teacher_union)
        together = [*student, *(one.source for one in each.teachers if one.asked(request))]
        for one in chosen:
            source = one.source
            check_teacher_labels(source, rows.labels)
            asked = {signal for signal in one.asked(request) if signal.module is None}  # those are asked live
            asked |= {parse_signal(signal) for signal in experiment.store.signals}
            label = label_of(each.label, one.label)
            if one.config.source == "live" and len(tasks) + len(each.teachers) > 2:
                reporter.say(f"{label}: source is live, nothing to capture")
                continue
            check_lengths(each, rows, source, *together)
            units = captured_units(each, rows, source, *together).whole
            found[label] = capture_table(each, one, units, asked or {LOGITS}, rows.labels, reporter, verify)
            resolved.models.release()
            captured = captured_labels(found[label].storage)
            who = whose(each.label, one.label)
            tell(unnamed_outputs(who, source, rows.labels), reporter.say)
            tell(renamed_outputs(who, captured, rows.labels), reporter.say)
    if not found:
        raise ConfigError("teacher.model: required by this command; name a folder or a hub model")
    return found


def _student_tokens(resolved: Resolved, shape: ModelSource | None, reporter: Reporter) -> list[ModelSource]:
    """The student's tokenizer, if there is a student: a trimmed one is made from the rows of all tasks."""
    student = resolved.experiment.student
    if student == StudentConfig():
        return []
    rows = []
    if student.vocabulary is not None:
        # What there is to say of them is said when they are read for the teacher.
        rows = [read_rows(task, task.first_source, lambda line: None).training for task in resolved.tasks]
    return [student_tokens(resolved, shape, rows, reporter.say)]
