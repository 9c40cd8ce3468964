"""What the page of a training run shows: its errors, and the features that it selects."""

from collections.abc import Sequence
from dataclasses import replace

from setdet.analyze.findings import look_into_errors
from setdet.analyze.queries import analyze_queries
from setdet.analyze.query_findings import sections
from setdet.analyze.watch import watched_model
from setdet.data.schema import Record
from setdet.models.queries import QuerySelection
from setdet.predict import Predictor
from setdet.report.findings import Findings


def look_into(predictor: Predictor, records: Sequence[Record]) -> Findings:
    """Analyses the errors and, unless queries are learned, the selected features.

    Raises:
        DataError: there is no record.
        ImageError: a picture cannot be read.
    """
    findings = look_into_errors(predictor, records)
    if not isinstance(watched_model(predictor).query_selection, QuerySelection):
        return findings
    selected = sections({"this run": analyze_queries(predictor, records)})
    return replace(findings, sections=(*findings.sections, *selected))
