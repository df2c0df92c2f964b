"""The reference page of the Helm chart's values, from the comments in its values.yaml."""

from chart_readme import CHART, table

from docs_pages.markdown import NOTE

INTRO = """# Helm chart

The values of the chart `helm/pagewire`; [Deployment](../deployment.md) says what it makes of them. Values of another
type and unknown names are refused by the chart's schema. A value set to null is left to pagewire or to the platform.
"""


def page() -> str:
    """Returns the page: every value, its default and its meaning."""
    return f"{NOTE}\n{INTRO}\n{table((CHART / 'values.yaml').read_text())}"
