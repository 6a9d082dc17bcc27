"""Reports that the tests look at."""

from dataclasses import replace

import pandas as pd
import pytest
from report_outcomes import random_outcome, realistic_content

from gmmcnn.report.compose import content_of
from gmmcnn.report.content import ReportContent


@pytest.fixture(scope="session")
def content() -> ReportContent:
    return realistic_content()


@pytest.fixture
def bare() -> ReportContent:
    """Nothing found, nothing trained, nothing masked, nothing known of the samples: the emptiest report there is."""
    outcome = random_outcome({"conv1": 3}, images=False, ch_ratio=1e6)
    return content_of(replace(outcome, known=outcome.known[["batch"]].assign(label=pd.NA), skipped=()))
