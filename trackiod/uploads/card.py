"""A target's card: how its parts are loaded, what its columns mean, and the SQL for a curve of all ranks."""

import pyarrow as pa

from trackiod.uploads.tables import SCHEMAS

_DEFAULT = "metrics"
_HEAD = "# Training runs, tracked with trackio\n"
_CODE = """
```python
import datasets

metrics = datasets.load_dataset(WHERE)["train"]
```
"""
_KINDS = """
So are "system", "runs" and "alerts" loaded. (Of what has no rows, `datasets` says that it "corresponds to no data".)
"""
_OF_FORM = {
    "csv": "\nCSV has no types: where texts all look like numbers they come back as numbers, and NaN as nothing.\n"
    "Texts that a spreadsheet would take for formulas have a `'` before them.\n",
    "jsonl": "\nJSON has no NaN and no infinities: they stand in `value_text`.\n",
}
_COLUMNS = """
* `metrics`: a row for each value that a rank logged. `value` is a float; `value_text` holds what a float cannot: texts,
  integers beyond 2^53, `true` and `false` (beside 1 and 0), and as JSON everything else. Rows are never changed.
* `system`: a row for each reading of a GPU, the host or a rank's process (`rank` is empty for what concerns the node).
* `runs`: what is known of a run on each host; its rows are replaced as the run goes on. `config`, `summary` are JSON.
* `alerts`: what was raised by `trackio.alert()`.
* Pictures and other files: where a value says `"file": "S/0"`, it is `media/<project>/<run id>/S-0.*`.

`attempt` is equal in the ranks of one start of the job, `seq` is the order in which a rank logged, `node` the number
of the host. What `trackio` shows as a run's curve is the mean over ranks of the last value at each step, where a later
attempt hides what earlier ones logged from its own first step on:

```sql
WITH began AS (
    SELECT run_id, metric, attempt, min(step) AS first_step, min(time) AS first_time
    FROM metrics GROUP BY run_id, metric, attempt
), seen AS (
    SELECT m.*, row_number() OVER (
        PARTITION BY m.run_id, m.metric, m.rank, m.attempt, m.step ORDER BY m.time DESC, m.seq DESC) AS place
    FROM metrics m JOIN began b USING (run_id, metric, attempt)
    WHERE NOT EXISTS (
        SELECT 1 FROM began l WHERE l.run_id = m.run_id AND l.metric = m.metric AND l.first_time > b.first_time
        AND l.first_step <= m.step)
)
SELECT run_id, metric, step, avg(value) AS value, count(*) AS ranks
FROM seen WHERE place = 1 GROUP BY run_id, metric, step ORDER BY run_id, metric, step;
```
"""


def card(kind: str, name: str = "path/of/this/folder") -> str:
    """The README.md of a `dataset` or `bucket` of that name, or of a folder of `parquet`, `csv` or `jsonl`."""
    bucket = f'"parquet", data_files="hf://buckets/{name}/metrics/**/*.parquet"'
    code = _CODE.replace("WHERE", bucket if kind == "bucket" else f'"{name}", "metrics"')
    form = kind if kind in ("csv", "jsonl") else "parquet"
    return "".join([_front(form), _HEAD, code, _KINDS, _OF_FORM.get(form, ""), _COLUMNS])


def _front(form: str) -> str:
    """What `datasets` reads: where the files of each kind lie and, for files of text, the types of their columns, which
    it would guess from the first file."""
    lines = ["---", "tags:", "- trackio", "configs:"]
    for kind in SCHEMAS:
        lines += [f"- config_name: {kind}", f"  data_files: {kind}/**/*.{form}"]
        lines += ["  default: true"] if kind == _DEFAULT else []
    if form != "parquet":
        lines.append("dataset_info:")
        for kind, schema in SCHEMAS.items():
            lines += [f"- config_name: {kind}", "  features:"]
            for field in schema:
                dtype = "float64" if pa.types.is_float64(field.type) else field.type  # Arrow says "double"
                lines += [f"  - name: {field.name}", f"    dtype: {dtype}"]
    return "\n".join([*lines, "---", "", ""])
