"""The tables of a report, as rows of text: Markdown and the page show the same ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """A heading, the columns, and rows of as many cells; `marked` is the row that matters, -1 none."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    marked: int = -1


def tables(facts: Facts) -> list[Table]:
    """All tables that have rows."""
    made = (
        _sizes,
        _shape,
        _latency,
        _accuracy,
        _tested,
        _budget,
        _attempts,
        _bisection,
        _halving,
        _rungs,
        _plan,
        _candidates,
        _sensitivity,
    )
    return [table for table in (make(facts) for make in made) if table.rows]


def cost_name(facts: Facts) -> str:
    """What candidates are compared by, in words."""
    return str(facts["cost"]).replace("_", " ")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 or float(value).is_integer() else f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _sizes(facts: Facts) -> Table:
    rows = [
        (
            " ".join(filter(None, (row["name"], row["unit"]))),
            _number(row["teacher"]),
            _number(row["asked"]),
            _number(row["actual"]),
            f"{row['actual'] / row['teacher']:.1%}",
        )
        for row in facts["sizes"]
    ]
    return Table("Asked and actual", ("size", "teacher", "asked", "actual", "of the teacher"), rows)


def _shape(facts: Facts) -> Table:
    rows = [
        (name, *(_number(sizes[which]) for which in ("teacher", "asked", "actual")))
        for name, sizes in facts["shape"].items()
    ]
    return Table("Stated sizes", ("size", "teacher", "asked", "actual"), rows)


def _latency(facts: Facts) -> Table:
    found, rows = facts["latency"], []
    asked = {limit["name"]: limit["asked"] for limit in facts["limits"] if limit["measured"]}
    for label, name in (("teacher, fp32", "teacher_latency"), ("shipped", "latency")):
        one = found[name]
        if one:
            p50_ms, p99_ms = (
                asked.get(f"latency_{limit}_ms") if name == "latency" else None for limit in ("p50", "p99")
            )
            rows.append(
                (
                    label,
                    _number(p50_ms),
                    f"{one['p50_ms']:.3f}",
                    f"{one['median_ms']:.3f}",
                    _number(p99_ms),
                    f"{one['p99_ms']:.3f}",
                    f"{one['spread']:.1%}",
                    str(one["turns"]),
                    f"batch {one['batch']}, {one['threads']} threads, {one['where']}",
                )
            )
    if device := found["device"]:
        limit = next(one for one in facts["limits"] if not one["measured"])
        times = (f"{limit['actual']:.3f}", "")
        p50_ms, p99_ms = times if device["name"] == "latency_p50_ms" else times[::-1]
        asked_ms = (_number(limit["asked"]), "")
        p50_asked, p99_asked = asked_ms if device["name"] == "latency_p50_ms" else asked_ms[::-1]
        label = "shipped, expected there, not measured"
        rows.append((label, p50_asked, p50_ms, "", p99_asked, p99_ms, "", "", device["where"]))
    columns = (
        "model",
        "p50 asked, ms",
        "p50 ms, undisturbed",
        "median of all, ms",
        "p99 asked, ms",
        "p99 ms",
        "spread",
        "timed",
        "where",
    )
    return Table("Latency on the serving runtime", columns, rows)


def _accuracy(facts: Facts) -> Table:
    return _by_stage(facts["accuracy"], "validation images, by which candidates and precision are chosen")


def _tested(facts: Facts) -> Table:
    return _by_stage(facts["tested"], "test images, by which nothing was chosen")


def _by_stage(stages: list[Facts], what: str) -> Table:
    if not stages:
        return Table("", (), [])
    first = stages[0]["top1"]
    rows = [
        (
            row["stage"],
            _percent(row["top1"]),
            f"{_percent(row['low'])} to {_percent(row['high'])}",
            f"{100 * (row['top1'] - first):+.2f}",
        )
        for row in stages
    ]
    columns = ("stage", "top-1 %", "95 % interval", "points against the teacher")
    return Table(f"Accuracy, {stages[0]['examples']:,} {what}", columns, rows)


def _budget(facts: Facts) -> Table:
    met = facts["budget_search"]
    if "measured" not in met:
        return Table("", (), [])
    row = (
        met["name"],
        f"{met['asked']:g}",
        f"{met['predicted']:.4g}",
        f"{met['measured']:.4g}",
        f"{met['spread']:.1%}",
        str(met["searches"]),
        met["where"],
    )
    found = "expected" if met.get("recorded") else "measured"
    columns = ("budget", "asked", "predicted", found, "spread", "searches", "on")
    return Table("How the budget was met", columns, [row])


def _attempts(facts: Facts) -> Table:
    asked = facts["budget_search"].get("asked")
    rows = [
        (f"{predicted:.4g}", f"{measured:.4g}", f"{measured / asked:.1%}")
        for predicted, measured in facts["budget_search"].get("attempts", ())
    ]
    marked = len(rows) - 1
    return Table(
        "Searches for the budget, the best last", ("predicted", "found", "of what was asked"), rows, marked
    )


def _bisection(facts: Facts) -> Table:
    met = facts["budget_search"]
    rows = [
        (_number(one["macs"]), _percent(one["top1"]), "yes" if one["top1"] >= met["asked"] else "no")
        for one in met.get("tried", ())
    ]
    return Table("The fewest MACs that keep the accuracy", ("macs", "top-1 % without training", "kept"), rows)


def _halving(facts: Facts) -> Table:
    rows = [
        (
            row["made_by"],
            str(row["before"] + 1),
            f"{row['divergence']:.4g}",
            str(row["after"] + 1),
            "; ".join(
                f"{one['steps']} steps: {one['divergence']:.4g}, {_percent(one['top1'])} %"
                for one in row["rounds"]
            ),
        )
        for row in facts["halving"]
    ]
    columns = (
        "candidate",
        "rank before",
        "KL in the search",
        "rank after",
        "KL and top-1 on validation images, after each round",
    )
    return Table("Successive halving", columns, rows, 0)


def _rungs(facts: Facts) -> Table:
    rows = [
        (
            str(row["rung"]),
            f"{row['kept']:.1%}",
            _number(row["params"]),
            _number(row["macs"]),
            _percent(row["cut_top1"]),
            _percent(row["distilled_top1"]),
        )
        for row in facts["rungs"]
    ]
    columns = ("rung", "budget, of the teacher", "params", "macs", "top-1 % cut", "top-1 % distilled")
    return Table("Rungs before the last cut", columns, rows)


def _plan(facts: Facts) -> Table:
    names = ("num_heads", "qk_dim", "v_dim", "mlp_dim")
    merging = any(row["merge"] for row in facts["plan"])
    rows = [
        (
            str(row["source"]),
            *("{} of {}".format(*row[name]) for name in names),
            *([str(row["merge"])] if merging else []),
        )
        for row in facts["plan"]
    ]
    more = ("pairs of tokens merged",) if merging else ()
    columns = ("layer", "heads", "query/key dims", "value dims", "MLP neurons", *more)
    return Table("What stays, layer by layer", columns, rows)


def _candidates(facts: Facts) -> Table:
    own_column = facts["cost"] not in ("params", "macs")
    rows = [
        (
            row["made_by"],
            str(row["layers"]),
            str(row["width"]),
            _number(row["params"]),
            _number(row["macs"]),
            *([_number(row["cost"])] if own_column else []),
            f"{row['divergence']:.4f}",
            "yes" if row["front"] else "",
            "**chosen**" if row["chosen"] else row["reason"],
        )
        for row in facts["candidates"]
    ]
    marked = next((index for index, row in enumerate(facts["candidates"]) if row["chosen"]), -1)
    more = (cost_name(facts),) if own_column else ()
    columns = ("candidate", "layers", "width", "params", "macs", *more, "KL, nats", "front", "why not")
    return Table("Candidates: cut, repaired and judged", columns, rows, marked)


def _sensitivity(facts: Facts) -> Table:
    curves: dict[tuple[int, str], list[str]] = {}
    for one in facts["sensitivity"] or []:
        cut = f"{one['kept']} of {one['of']}: {one['divergence']:.2g}"
        curves.setdefault((one["layer"], one["kind"]), []).insert(0, cut)
    rows = [(str(layer), kind.replace("_", " "), ", ".join(cuts)) for (layer, kind), cuts in curves.items()]
    return Table("Sensitivity", ("layer", "part", "kept: KL to the teacher, nats"), rows)


def _kept(pairs: list[list[int]]) -> str:
    return ", ".join("{} of {}".format(*pair) for pair in pairs)


def notes(facts: Facts) -> list[str]:
    """What the tables do not say."""
    width, full = facts["width"]
    gone = ", ".join(map(str, facts["layers_removed"])) or "none"
    seconds = ", ".join(f"{name} {value:g} s" for name, value in facts["seconds"].items())
    return [
        f"Layers removed: {gone}. Channels of the residual stream: {width} of {full}.",
        *([f"Groups of channels inside the stem's units: {_kept(facts['stem'])}."] if facts["stem"] else []),
        "KL to the teacher is of predictions, in nats an image, without labels, on calibration images that repaired nothing. "
        f"On the front is what no candidate of less {cost_name(facts)} comes as near to the teacher as.",
        *(f"Remark: {remark}." for remark in facts["remarks"]),
        *(f"Precision: {why}." for why in [facts["shipped"].get("why")] if why),
        f"Time: {seconds}.",
    ]


def verdict(facts: Facts) -> str:
    """What was asked and whether it came out, in one sentence."""
    found, precision = facts["within_budget"], facts["shipped"].get("precision")
    if precision is None:
        return f"Asked: {facts['asked']}. Nothing was shipped: the command ended before the export."
    if found is None:
        return f"Asked: {facts['asked']}. Shipped as {precision}, in the sizes that were asked for."
    if found:
        expected = any(not limit["measured"] for limit in facts["limits"])
        how = "expected on the recorded device and not measured there" if expected else "measured afresh"
        return f"Asked: {facts['asked']}. Shipped as {precision}, {how}: within the budget."
    missed = "; ".join(
        f"{one['name']} is {one['actual']:.6g}, asked is {one['asked']:.6g}"
        for one in facts["limits"]
        if not one["met"]
    )
    return f"Asked: {facts['asked']}. Shipped as {precision}, NOT within the budget: {missed}."
