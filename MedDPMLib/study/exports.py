"""How do other programs read the ratings? Files for iMRMC and RJafroc.

Both want whole numbers for readers, cases and (RJafroc) modalities: they are numbered from 1 in the order of the
:class:`Ratings`, and :func:`numbering` says what each number stands for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.study.table import Ratings


def numbering(ratings: Ratings) -> str:
    """CSV: what each number in the exported files stands for."""
    lines = ["kind,number,name"]
    for kind, names in ("treatment", ratings.treatments), ("reader", ratings.readers), ("case", ratings.cases):
        lines += [f'{kind},{number},"{name.replace(chr(34), chr(34) * 2)}"' for number, name in enumerate(names, 1)]
    return "\n".join(lines) + "\n"


def write_imrmc(path: Path, ratings: Ratings, title: str) -> None:
    """The text format of iMRMC (FDA): four counts, then one line "reader,case,modality,score" for each rating.

    Reader -1 and modality 0 give the truth: 0 without, 1 with signal. The first line is free text, in which iMRMC also
    looks for "N0:" and the like, so that no colon may be there, and which it cannot read with fewer than two letters.
    """
    abnormal = int(ratings.truth.sum())
    lines = [
        "MedDPM reader study " + " ".join(title.replace(":", " ").split()),
        "",
        f"N0: {len(ratings.cases) - abnormal}",
        f"N1: {abnormal}",
        f"NR: {len(ratings.readers)}",
        f"NM: {len(ratings.treatments)}",
        "",
        "BEGIN DATA:",
    ]
    lines += [f"-1,{case},0,{int(truth)}" for case, truth in enumerate(ratings.truth, 1)]
    lines += [f"{reader},{case},{treatment},{value:g}" for treatment, reader, case, value in _each(ratings)]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii", errors="replace")


def write_rjafroc(path: Path, ratings: Ratings) -> None:
    """An Excel workbook as ``RJafroc::DfReadDataFile(path, newExcelFileFormat = TRUE)`` reads it: ROC, factorial.

    The worksheet Truth has a line for each case (LesionID 1 for an abnormal one), FP the ratings of normal, TP those of
    abnormal cases.
    """
    from openpyxl import Workbook

    book = Workbook()
    truth, false_positive, true_positive = book.active, book.create_sheet("FP"), book.create_sheet("TP")
    truth.title = "Truth"
    truth.append(["CaseID", "LesionID", "Weight", "ReaderID", "ModalityID", "Paradigm"])
    everyone = [", ".join(str(n + 1) for n in range(len(names))) for names in (ratings.readers, ratings.treatments)]
    paradigm = iter(("ROC", "FCTRL"))
    for case, abnormal in enumerate(ratings.truth, 1):
        truth.append([case, int(abnormal), int(abnormal), *everyone, next(paradigm, None)])
    false_positive.append(["ReaderID", "ModalityID", "CaseID", "FP_Rating"])
    true_positive.append(["ReaderID", "ModalityID", "CaseID", "LesionID", "TP_Rating"])
    for treatment, reader, case, value in _each(ratings):
        if ratings.truth[case - 1]:
            true_positive.append([reader, treatment, case, 1, value])
        else:
            false_positive.append([reader, treatment, case, value])
    with atomic_write(path) as temporary:
        book.save(temporary)


def _each(ratings: Ratings):
    """(treatment, reader, case, value), numbered from 1."""
    for index in np.ndindex(*ratings.values.shape):
        yield *(number + 1 for number in index), float(ratings.values[index])
