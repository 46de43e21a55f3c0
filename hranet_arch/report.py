"""The report of a comparison, from its record and its pictures: tables (Markdown, CSV, LaTeX), plots, crops, one page.

The same record and the same pictures give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

from hranet_arch import examples, plots, tables
from hranet_arch.files import write_text
from hranet_arch.pages import read_page
from hranet_arch.record import Record
from hranet_arch.scores import (
    COST_NOTE,
    NOTED,
    PARTIAL,
    Score,
    find_training,
    format_psnr,
    format_ssim,
    list_cost_tables,
    list_groups,
    list_published,
    name_level,
    name_set,
    score_results,
)


def write_report(record: Record, folder: Path) -> None:
    """Writes tables, plots, crops and ``report.html`` into a results folder.

    Args:
        record: what was measured.
        folder: the results folder; its pictures lie where ``picture_path`` says. Examples without theirs are left out.
    """
    write_text(folder / "table.md", tables.format_markdown(record))
    write_text(folder / "table.csv", tables.format_csv(record))
    write_text(folder / "table.tex", tables.format_latex(record))
    figures = plots.write_plots(record, folder / "plots")
    chosen = examples.load_examples(record, folder)
    examples.write_crops(record, chosen, folder / "crops")
    pictures = examples.encode_pictures(record, chosen)
    template = read_page("report_page.html")
    write_text(folder / "report.html", format_page(template, {**describe_page(record), "plots": figures, **pictures}))


# --- the page ---------------------------------------------------------------------------------------------------------


def format_page(template: str, data: dict) -> str:
    """Puts the data into the page as JSON. Without ``<`` in it, no text in a record can end the script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return template.replace("{{DATA}}", text.replace("<", "\\u003c"), 1)


def describe_page(record: Record) -> dict:
    """What the page shows beside pictures and plots, every number both as text and, to sort by, as a number."""
    scores, groups = score_results(record), list_groups(record)
    return {
        "title": record.name,
        "summary": tables.summarize(record),
        "groups": [{"set": name_set(testset), "level": name_level(record, level)} for testset, level in groups],
        "methods": list(record.methods),
        "scores": [[_describe_score(scores.get((method, group))) for group in groups] for method in record.methods],
        "training": [method.training for method in record.methods.values()],
        "published": _describe_published(record),
        "marks": tables.explain_marks(record),
        "costs": [vars(table) for table in list_cost_tables(record)],
        "costNote": COST_NOTE,
        "about": tables.describe_record(record),
        "failures": len(record.failures),
    }


def _describe_published(record: Record) -> list[dict]:
    """The rows of methods that were not measured."""
    return [
        {
            "name": name,
            "training": find_training(record, name),
            "cells": [
                {"text": tables.format_published(value), "value": value.psnr} if value else None
                for value in map(values.get, list_groups(record))
            ],
        }
        for name, values in list_published(record).items()
    ]


def _describe_score(score: Score | None) -> dict | None:
    if score is None:
        return None
    result, published = score.result, score.published
    cells = {
        "PSNR": {"text": format_psnr(result.psnr), "value": result.psnr, "best": score.psnr_rank == 1},
        "SSIM": {"text": format_ssim(result.ssim), "value": result.ssim, "best": score.ssim_rank == 1},
    }
    if "psnrb" in result.model_fields_set:
        cells["PSNR-B"] = {"text": format_psnr(result.psnrb), "value": result.psnrb, "best": score.psnrb_rank == 1}
    if score.is_partial:
        cells["PSNR"]["sign"] = PARTIAL
    if published:
        cells["PSNR"]["published"] = format_psnr(published.psnr)
        cells["difference"] = {"text": f"{score.difference:+.2f}", "value": score.difference}
        if score.mark:
            title = f"{score.difference:+.2f} dB from the published {format_psnr(published.psnr)}"
            if score.mark == NOTED:
                title += f". {published.note}"
            for name in ("PSNR", "difference"):
                cells[name] |= {"sign": score.mark, "title": title}
        if published.ssim is not None:
            cells["SSIM"]["published"] = format_ssim(published.ssim)
        if published.psnrb is not None and "PSNR-B" in cells:
            cells["PSNR-B"]["published"] = format_psnr(published.psnrb)
    return cells
