"""The tables of a comparison, in Markdown, CSV and LaTeX, and what stands under them."""

from __future__ import annotations

import csv
import io
import re

from hranet_arch.record import Record
from hranet_arch.schema import LEVEL_KEYS
from hranet_arch.scores import (
    COST_NOTE,
    DIFFERENT,
    MISSING,
    NOTED,
    PARTIAL,
    TOLERANCE,
    Group,
    Published,
    Score,
    find_cost,
    find_training,
    follows_field,
    format_psnr,
    format_ssim,
    list_cost_tables,
    list_groups,
    list_published,
    name_group,
    name_level,
    name_set,
    score_results,
)

# --- what stands under the tables -------------------------------------------------------------------------------------


def summarize(record: Record) -> str:
    """One line: what was compared, on what, where."""
    protocol = record.protocol
    color = "Grey" if protocol.color == "gray" else "Colour"
    task = {"denoise": "denoising", "sr": "super-resolution", "jpeg": "JPEG artifact removal"}[protocol.task]
    sets = {}
    for name in record.testsets:
        sets.setdefault(name_set(name), f"{name_set(name)} ({_count(record.testsets[name].pictures, 'picture')})")
    levels = ", ".join(f"{level:g}" for level in protocol.levels)
    compared = _count(sum(method.kind != "input" for method in record.methods.values()), "method")
    where = f"{compared} on {' and '.join(sets.values())}, measured on {record.machine.device_name}"
    return f"{color} {task}, {'σ' if protocol.task == 'denoise' else LEVEL_KEYS[protocol.task]} {levels}: {where}."


def explain_marks(record: Record) -> list[str]:
    """The signs that the tables use, each explained; nothing that they do not use."""
    scores = score_results(record)
    lines = []
    if any(score.psnr_rank for score in scores.values()):
        lines.append("Bold: the best of its column as printed.")
    if any(score.published for score in scores.values()):
        lines.append("In parentheses: the published PSNR.")
    marks = {score.mark for score in scores.values()}
    if marks & {DIFFERENT, NOTED}:
        both = " and ".join(mark for mark in (DIFFERENT, NOTED) if mark in marks)
        lines.append(f"{both}: measured and published PSNR, both rounded, differ by more than 0.0{TOLERANCE} dB.")
    if NOTED in marks:
        lines.append(f"{NOTED}: a note on the published value may explain it (`published.json` has it).")
    if any(score.is_partial for score in scores.values()):
        lines.append(f"{PARTIAL}: the mean lacks pictures of the set, so it has no rank and no published value.")
    if len(scores) < len(record.methods) * len(list_groups(record)):
        lines.append(f"{MISSING}: not measured.")
    named = {name_set(s.result.testset): None for s in scores.values()
             if s.published and record.testsets[s.result.testset].status == "by name"}  # fmt: skip
    if named:
        lines.append(
            f"{', '.join(named)}: the pictures are those of the published set by name, number and size; "
            "that their pixels are the same is not known."
        )
    return lines


def describe_record(record: Record) -> list[tuple[str, list[str]]]:
    """Headings and lines: how it was measured, with what, what failed."""
    machine = record.machine
    sections = [
        ("Protocol", _describe_protocol(record)),
        ("Test sets", [_describe_testset(name, record) for name in record.testsets]),
        ("Methods", [_describe_method(name, record) for name in record.methods]),
        ("Published values", _describe_published(record)),
        ("Machine", [
            f"{machine.device_name} ({machine.device}), {_count(machine.threads, 'thread')}, "
            f"{machine.cpu_capability}, {machine.system}",
            "precision: " + ", ".join(f"{key} {value}" for key, value in machine.precision.items()),
            "versions: " + ", ".join(f"{name} {number}" for name, number in machine.versions.items()),
        ]),
        ("Record", [f"{record.name}, begun {record.started}, commit {record.commit}"]),
        ("Failures", [failure.describe() for failure in record.failures]),
    ]  # fmt: skip
    return [(heading, lines) for heading, lines in sections if lines]


def _describe_protocol(record: Record) -> list[str]:
    protocol = record.protocol
    lines = [f"{name}: {definition}" for name, definition in protocol.metrics.items()]
    border = "none" if protocol.crop_border == "0" else "as many pixels as the scale"
    lines.append(f"metrics look at {protocol.channel}; border cut off: {border}")
    if protocol.noise:
        noise = protocol.noise
        lines.insert(0, f"noise: {noise.name}, seed: {noise.seed}, {noise.generator}; {noise.description}")
    if protocol.compression:
        lines.insert(0, f"JPEG files: {protocol.compression}; MATLAB's, which published tables were made of, differ")
    tiles = (
        f"in tiles of {protocol.tile} where larger than one with its halo" if protocol.tile else "whole, never in tiles"
    )
    lines.append(f"networks run in {protocol.precision}, pictures {tiles}")
    if not follows_field(record):
        lines.append("this is not the protocol of the published tables, so no published value is set beside")
    return lines


def _describe_testset(name: str, record: Record) -> str:
    testset = record.testsets[name]
    hashes = ", ".join(f"{value[:12]}" if key == "all" else f"{key}: {value[:12]}"
                       for key, value in testset.sha256.items())  # fmt: skip
    status = {"exact": "the published pictures, by hash", "by name": "the published pictures by name, number and size",
              "differs": "other pictures than the published set of this name", "unknown": "no known set"}  # fmt: skip
    return f"{name}: {_count(testset.pictures, 'picture')}; {status[testset.status]}; SHA-256 {hashes}"


def _describe_method(name: str, record: Record) -> str:
    method = record.methods[name]
    arguments = ", ".join(f"{key}={value}" for key, value in method.arguments.items())
    parts = [method.kind, f"{method.type}({arguments})" if arguments else method.type]
    for level, weights in method.weights.items():
        at = "" if level == "all" else f" at {level}"
        parts.append(f"weights{at} {weights.file} (SHA-256 {weights.sha256[:12]})")
    said = {
        "takes the bicubically enlarged picture": method.enlarge_first,
        "takes the luma alone": method.channel == "y",
        "mean over the picture's eight symmetries": method.ensemble,
    }
    parts += [text for text, is_so in said.items() if is_so]
    if method.training:
        parts.append(f"trained on {method.training}")
    return f"{name}: {'; '.join(parts)}"


def _describe_published(record: Record) -> list[str]:
    sources, notes = {}, {}
    for (method, (testset, _)), score in score_results(record).items():
        if score.published:
            name = record.methods[method].published
            sources[f"{method}: as {name} in {score.published.source}"] = None
            if score.published.note:
                notes.setdefault((method, score.published.note), {})[name_set(testset)] = None
    for method, values in list_published(record).items():
        for (testset, _), value in values.items():
            sources[f"{method}: {value.source}"] = None
            if value.note:
                notes.setdefault((method, value.note), {})[name_set(testset)] = None
    return [*sources, *(f"{method} on {', '.join(sets)}: {note}" for (method, note), sets in notes.items())]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- Markdown ---------------------------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def format_markdown(record: Record) -> str:
    """The tables, their legend and how it was measured, in GitHub's Markdown."""
    blocks = [format_results(record).rstrip()]
    for heading, lines in describe_record(record):
        blocks += [f"## {heading}", "\n".join(f"- {escape_markdown(line)}" for line in lines)]
    return "\n\n".join(blocks) + "\n"


def format_results(record: Record) -> str:
    """The tables and their legend alone: what a person at a terminal waits for."""
    scores, groups = score_results(record), list_groups(record)
    heads = ["trained on", *(escape_markdown(name_group(record, group)) for group in groups)]
    rows = [[name_columns(record), *heads]]
    for method, described in record.methods.items():
        cells = [_format_markdown_cell(scores.get((method, group))) for group in groups]
        rows.append([escape_markdown(method), escape_markdown(described.training or ""), *cells])
    blocks = [f"# {escape_markdown(record.name)}", escape_markdown(summarize(record)), join_rows(rows, texts=2)]
    blocks.append("  \n".join(map(escape_markdown, explain_marks(record))))
    rows = [["Published, not measured here", *heads]]
    for method, values in list_published(record).items():
        training = find_training(record, method) or ""
        rows.append([escape_markdown(text) for text in (method, training, *(format_published(values.get(group))
                                                                           for group in groups))])  # fmt: skip
    blocks += [join_rows(rows, texts=2)] if len(rows) > 1 else []
    for table in list_cost_tables(record):
        rows = [[table.title, *table.columns]]
        rows += [[method, *(text for text, _ in cells)] for method, cells in table.rows.items()]
        blocks.append(join_rows([[escape_markdown(text) for text in row] for row in rows]))
        blocks.append(COST_NOTE)
    return "\n\n".join(block for block in blocks if block) + "\n"


def name_columns(record: Record) -> str:
    """What a cell holds."""
    return "PSNR, dB / SSIM" + " / PSNR-B, dB" * ("psnrb" in record.protocol.metrics)


def format_published(value: Published | None) -> str:
    """A cell of what is published, as far as it is."""
    if value is None:
        return MISSING
    texts = [format_psnr(value.psnr), format_ssim(value.ssim)]
    return " / ".join(texts + ([format_psnr(value.psnrb)] if value.psnrb is not None else []))


def _format_markdown_cell(score: Score | None) -> str:
    if score is None:
        return MISSING
    bold = ["**" * (rank == 1) for rank in (score.psnr_rank, score.ssim_rank, score.psnrb_rank)]
    psnr, ssim = format_psnr(score.result.psnr), format_ssim(score.result.ssim)
    published = f" ({f'{format_psnr(score.published.psnr)} {score.mark}'.strip()})" if score.published else ""
    text = f"{bold[0]}{psnr}{bold[0]}{PARTIAL * score.is_partial}{published} / {bold[1]}{ssim}{bold[1]}"
    if "psnrb" not in score.result.model_fields_set:
        return text
    return f"{text} / {bold[2]}{format_psnr(score.result.psnrb)}{bold[2]}"


def join_rows(rows: list[list[str]], texts: int = 1) -> str:
    """A table, whose first columns are ``texts`` and whose others are numbers."""
    rule = [*["---"] * texts, *["---:"] * (len(rows[0]) - texts)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


# --- CSV --------------------------------------------------------------------------------------------------------------


def format_csv(record: Record) -> str:
    """One row for each method, test set and level; seconds as ms, bytes as MB; empty where not measured."""
    scores = score_results(record)
    rows = [_list_csv_row(record, method, group, scores.get((method, group)))
            for group in list_groups(record) for method in record.methods]  # fmt: skip
    buffer = io.StringIO()
    # the columns of a size are there where any method was measured at it
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _list_csv_row(record: Record, method: str, group: Group, score: Score | None) -> dict[str, object]:
    testset, level = group
    result, published = (score.result, score.published) if score else (None, None)
    described = record.methods[method]
    row = {"method": method, "kind": described.kind, "type": described.type, "training": described.training}
    row |= {"testset": testset, LEVEL_KEYS[record.protocol.task]: f"{level:g}"}
    row |= {"pictures": len(result.pictures) if result else 0, "set_pictures": record.testsets[testset].pictures}
    for name in record.protocol.metrics:
        value = getattr(result, name, None)
        row[name] = None if value is None else f"{value:.4f}"
    compared = [name for name in record.protocol.metrics if name != "psnr_float"]
    row |= {f"published_{name}": getattr(published, name, None) for name in compared}
    row["difference"] = f"{score.difference:.2f}" if published else None
    row |= {f"published_{name}": getattr(published, name, None) for name in ("source", "note")}
    cost = find_cost(record, method, level)
    row |= {name: getattr(cost, name, None) for name in ("parameters", "macs")}
    row["macs_size"] = "x".join(map(str, cost.macs_size)) if cost and cost.macs_size else None
    for latency in cost.latency if cost else []:
        size = "x".join(map(str, latency.size))
        for name in ("median", "lower_quartile", "upper_quartile"):
            row[f"latency_ms_{name}_{size}"] = f"{getattr(latency, name) * 1e3:.4f}"
    for memory in cost.memory if cost else []:
        row[f"peak_memory_mb_{'x'.join(map(str, memory.size))}"] = f"{memory.peak / 1e6:.3f}"
    hashes = record.testsets[testset].sha256
    row |= {"set_status": record.testsets[testset].status, "set_sha256": hashes.get("all")}
    if record.protocol.task == "sr":
        row |= {"set_sha256": hashes.get(f"x{level:g}/gt"), "set_lq_sha256": hashes.get(f"x{level:g}/lq")}
    return row


# --- LaTeX ------------------------------------------------------------------------------------------------------------

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}", "]": "{]}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
    "σ": r"$\sigma$", "×": r"$\times$", "≠": r"$\neq$", "†": r"$\dagger$", "‡": r"$\ddagger$",
    "²": r"$^2$", "—": "---", "\u00a0": "~",
})  # fmt: skip


def escape_latex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX)


def format_latex(record: Record) -> str:
    """A table environment for ``booktabs`` and ``amsmath``; test sets stand below each other, so that it fits a page.

    How it was measured stands above it as comments.
    """
    comments = [f"% {line}" for heading, lines in describe_record(record)
                for line in (heading, *(f"  {' '.join(text.split())}" for text in lines))]  # fmt: skip
    lines = [*comments, r"\begin{table}", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}"]
    lines += [
        rf"\caption{{{escape_latex(f'{summarize(record)} {name_columns(record)}.')}}}",
        *_list_latex_scores(record),
    ]
    for table in list_cost_tables(record):
        heads = [column.partition(" at ") for column in table.columns]  # the size goes into a second line
        lines += ["", r"\medskip\scriptsize", rf"\begin{{tabular}}{{l*{{{len(heads)}}}{{r}}}}", r"\toprule"]
        lines += [_join_latex([table.title, *(head for head, _, _ in heads)])]
        lines += [_join_latex(["", *(size for _, _, size in heads)]), r"\midrule"]
        lines += [_join_latex([method, *(text for text, _ in cells)]) for method, cells in table.rows.items()]
        lines += [r"\bottomrule", r"\end{tabular}"]
    training = {name: method.training for name, method in record.methods.items() if method.training}
    training |= {name: text for name in list_published(record) if (text := find_training(record, name))}
    trained = [f"Trained on: {'; '.join(f'{name}: {text}' for name, text in training.items())}."] if training else []
    notes = ["Underlined: the second best.", *explain_marks(record), *trained, COST_NOTE]
    notes = rf"\parbox{{\linewidth}}{{\scriptsize {escape_latex(' '.join(notes))}}}"
    return "\n".join([*lines, "", r"\smallskip", notes, r"\end{table}", ""])


def _list_latex_scores(record: Record) -> list[str]:
    scores, groups = score_results(record), list_groups(record)
    levels = [level for level in record.protocol.levels if level in {level for _, level in groups}]
    blocks = {}  # a set's published name -> its groups by level: Set5/x2 and Set5/x3 are one block
    for testset, level in groups:
        blocks.setdefault(name_set(testset), {})[level] = (testset, level)
    lines = [rf"\begin{{tabular}}{{l*{{{len(levels)}}}{{l}}}}", r"\toprule"]
    lines.append(_join_latex(["", *(name_level(record, level) for level in levels)]))
    for name, group in blocks.items():
        lines += [r"\midrule", rf"\multicolumn{{{len(levels) + 1}}}{{l}}{{\emph{{{escape_latex(name)}}}}} \\"]
        for method in record.methods:
            cells = [_format_latex_cell(scores.get((method, group.get(level)))) for level in levels]
            lines.append(" & ".join([escape_latex(method), *cells]) + r" \\")
        for method, values in list_published(record).items():
            cells = [format_published(values.get(group.get(level))) for level in levels]
            lines.append(_join_latex([f"{method} (published)", *cells]))
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _format_latex_cell(score: Score | None) -> str:
    if score is None:
        return escape_latex(MISSING)
    emphasis = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
    psnr = emphasis[score.psnr_rank].format(escape_latex(format_psnr(score.result.psnr)))
    ssim = emphasis[score.ssim_rank].format(escape_latex(format_ssim(score.result.ssim)))
    if "psnrb" in score.result.model_fields_set:
        ssim += " / " + emphasis[score.psnrb_rank].format(escape_latex(format_psnr(score.result.psnrb)))
    mark = rf"\,{escape_latex(score.mark)}" if score.mark else ""
    published = f" ({format_psnr(score.published.psnr)}{mark})" if score.published else ""
    return f"{psnr}{escape_latex(PARTIAL) * score.is_partial}{published} / {ssim}"


def _join_latex(texts: list[str]) -> str:
    return " & ".join(map(escape_latex, texts)) + r" \\"
