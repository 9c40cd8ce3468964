"""What the page of a training run shows: its errors, and the features that it selects."""

from collections.abc import Sequence
from dataclasses import replace

from setdet.analyze.errors import ErrorAnalysis
from setdet.analyze.findings import error_findings
from setdet.analyze.ledger import Ledger
from setdet.analyze.queries import QueryStudy, selected_on
from setdet.analyze.query_findings import sections
from setdet.analyze.watch import looks, watched_model
from setdet.data.schema import Record
from setdet.models.queries import QuerySelection
from setdet.predict import Predictor
from setdet.report.findings import Findings


def look_into(predictor: Predictor, records: Sequence[Record]) -> Findings:
    """Analyses the errors and, unless queries are learned, the selected features, in one pass over the pictures.

    Raises:
        DataError: there is no record.
        ImageError: a picture cannot be read.
    """
    selects = isinstance(watched_model(predictor).query_selection, QuerySelection)
    ledger, study = Ledger(predictor.class_names), QueryStudy()
    for look in looks(predictor, records):
        ledger.add(look.record, look.found)
        if selects:
            study.add(look.record, selected_on(look))
    errors = ErrorAnalysis(entries=ledger.entries(), records=tuple(records), chosen=None)
    findings = error_findings(errors)
    if not selects:
        return findings
    selected = study.result()
    return replace(
        findings,
        values=findings.values | {"queries": selected.to_dict()},
        sections=findings.sections + sections({"this run": selected}),
    )
