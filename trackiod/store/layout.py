"""The tables of a project's database.

Points arrive in `batches`, as the streams sent them; what is known of runs and series is derived from them as
they are committed, in the same transaction. Later they are folded: `axes` and `chunks` take the place of batches.

A table, a column or an index may be added here without another version (decision 15): a column can be null or has a
constant default, a table of what belongs to a stream or a run has a column `stream` or `run`, an index is not unique,
and a name is never used again for something else. `FIRST` stays what it is.
"""

VERSION = 3
"""of the layout, in SQLite's `user_version`: raised only if a release that knows an earlier one could not go on in a
database; then `migrations` has a function, and `FIRST` says what the new one begins with"""

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    name_rank INTEGER NOT NULL,  -- the rank whose name it is: the lowest that came
    run_group TEXT,
    created_ns INTEGER NOT NULL,
    resumes INTEGER NOT NULL     -- it asked to go on with the newest earlier run of its name
) WITHOUT ROWID;
CREATE INDEX runs_by_name ON runs (name, created_ns, id, resumes);
CREATE INDEX runs_by_time ON runs (created_ns, id);
CREATE INDEX runs_going_on ON runs (name) WHERE resumes;

CREATE TABLE streams (
    id TEXT PRIMARY KEY,
    run TEXT NOT NULL,
    role TEXT NOT NULL,          -- rank, worker or sampler
    rank INTEGER NOT NULL,
    attempt TEXT NOT NULL,       -- equal in the ranks of one start of the job
    process TEXT NOT NULL,       -- equal in the streams of one process
    started_ns INTEGER NOT NULL,
    world_size INTEGER NOT NULL,
    meta BLOB NOT NULL,          -- msgpack: all facts of HELLO
    committed INTEGER NOT NULL,  -- everything below this offset is stored
    records INTEGER NOT NULL DEFAULT 0,
    points INTEGER NOT NULL DEFAULT 0,
    refused_records INTEGER NOT NULL DEFAULT 0,
    refused_points INTEGER NOT NULL DEFAULT 0,
    last_ns INTEGER,             -- time of its last record
    state TEXT,                  -- null while it is open
    cause TEXT,
    ended_ns INTEGER,
    explicit INTEGER             -- 1: finish() was called, 0: the interpreter ended, null: neither
) WITHOUT ROWID;
CREATE INDEX streams_by_run ON streams (run, started_ns);
CREATE INDEX streams_open ON streams (run) WHERE state IS NULL;
CREATE INDEX streams_ended ON streams (ended_ns, run) WHERE state IS NOT NULL;

CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    records INTEGER NOT NULL,
    data BLOB NOT NULL           -- records, as `trackio.record` lays them out
);
CREATE UNIQUE INDEX batches_by_stream ON batches (stream, start);

CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    name TEXT NOT NULL,
    points INTEGER NOT NULL,
    counted INTEGER NOT NULL,    -- of these, points whose step the process's counter gave
    first_step INTEGER NOT NULL,
    max_step INTEGER NOT NULL,
    last_step INTEGER NOT NULL,
    last_ns INTEGER NOT NULL,
    last BLOB NOT NULL,          -- msgpack: the last value logged
    ascending INTEGER NOT NULL,  -- 1: each step was higher than the one before, so all of its points show
    numbers INTEGER NOT NULL,    -- values that are numbers, NaN apart
    nans INTEGER NOT NULL,
    low,                         -- the least, greatest and total of the numbers
    high,
    total REAL
);
CREATE UNIQUE INDEX series_by_stream ON series (stream, name);

CREATE TABLE axes (
    id INTEGER PRIMARY KEY,      -- a stream's axes stand in the order of its offsets
    stream TEXT NOT NULL,
    start INTEGER NOT NULL,      -- offset of the first record
    count INTEGER NOT NULL,      -- records
    shown INTEGER NOT NULL,      -- of these, the last ones of their step
    first_step INTEGER NOT NULL, -- the lowest
    last_step INTEGER NOT NULL,  -- the highest
    first_ns INTEGER NOT NULL,   -- times of these two
    last_ns INTEGER NOT NULL,
    data BLOB NOT NULL,          -- offsets, steps, times, origins
    blocks BLOB                  -- first and last steps and times, counts; null if there is one block
);
CREATE INDEX axes_by_stream ON axes (stream, id);

CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL,
    axis INTEGER NOT NULL,
    overlapped INTEGER NOT NULL, -- 1: a later chunk of the series hides some of its points, so its sums do not hold
    kind TEXT NOT NULL,          -- how the values are stored, see `codec`
    nans INTEGER,                -- sums over the points that show; null if they are no numbers
    low REAL,
    high REAL,
    total REAL,
    data BLOB NOT NULL,
    blocks BLOB                  -- the same sums, for each block
);
CREATE UNIQUE INDEX chunks_by_series ON chunks (series, axis);

CREATE TABLE clocks (
    stream TEXT NOT NULL,
    time_ns INTEGER NOT NULL,    -- wall clock and monotonic clock where the one jumped against the other
    monotonic_ns INTEGER NOT NULL
);

CREATE TABLE configs (
    stream TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,         -- msgpack
    PRIMARY KEY (stream, key)
) WITHOUT ROWID;

CREATE TABLE summaries (
    stream TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,         -- msgpack: what the user set
    PRIMARY KEY (stream, key)
) WITHOUT ROWID;

CREATE TABLE definitions (
    run TEXT NOT NULL,
    name TEXT NOT NULL,
    options BLOB NOT NULL,       -- msgpack: step_metric, reduce, summary, goal
    PRIMARY KEY (run, name)
) WITHOUT ROWID;

CREATE TABLE holes (
    stream TEXT NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    cause TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    PRIMARY KEY (stream, start)
) WITHOUT ROWID;

CREATE TABLE files (
    id TEXT PRIMARY KEY,         -- stream/number
    stream TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    facts BLOB NOT NULL,         -- msgpack: size, suffix, what to make of it, where it came from
    artifact INTEGER,            -- the stream's artifact that it is part of
    state TEXT,                  -- null: it is to be kept yet; kept; incomplete
    digest TEXT,                 -- SHA-256 of what is kept
    size INTEGER,
    suffix TEXT,
    cause TEXT                   -- why it is incomplete, or what else there is to say
) WITHOUT ROWID;
CREATE INDEX files_by_stream ON files (stream, artifact);
CREATE INDEX files_to_keep ON files (at_ns) WHERE state IS NULL;

CREATE TABLE artifacts (
    stream TEXT NOT NULL,
    number INTEGER NOT NULL,     -- of the stream's artifacts
    time_ns INTEGER NOT NULL,
    role TEXT NOT NULL,          -- output: it was logged; input: it was used
    name TEXT NOT NULL,
    facts BLOB NOT NULL,         -- msgpack: type, description, metadata, aliases, references, overwrite
    version INTEGER,             -- null: its files are to be kept yet
    PRIMARY KEY (stream, number)
) WITHOUT ROWID;
CREATE INDEX artifacts_by_name ON artifacts (name, version);
CREATE INDEX artifacts_to_number ON artifacts (stream, number) WHERE version IS NULL;

CREATE TABLE versions (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    type TEXT NOT NULL,
    digest TEXT NOT NULL,        -- of the manifest: equal content, equal digest
    size INTEGER NOT NULL,
    facts BLOB NOT NULL,         -- msgpack: description, metadata
    manifest BLOB NOT NULL,      -- msgpack: a map for each file or reference
    PRIMARY KEY (name, version)
) WITHOUT ROWID;

CREATE TABLE aliases (
    name TEXT NOT NULL,
    alias TEXT NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (name, alias)
) WITHOUT ROWID;

CREATE TABLE alerts (
    stream TEXT NOT NULL,
    start INTEGER NOT NULL,      -- offset of its record
    time_ns INTEGER NOT NULL,
    step INTEGER,
    level TEXT NOT NULL,
    title TEXT NOT NULL,
    text TEXT,
    webhook TEXT,                -- where it is to be sent yet
    sent TEXT,                   -- null, sent, or why it was given up
    PRIMARY KEY (stream, start)
) WITHOUT ROWID;
CREATE TABLE system (
    stream TEXT NOT NULL,
    start INTEGER NOT NULL,      -- offset of its record
    time_ns INTEGER NOT NULL,
    metrics BLOB NOT NULL,       -- msgpack: what log_system() was given
    PRIMARY KEY (stream, start)
) WITHOUT ROWID;
CREATE INDEX alerts_to_send ON alerts (time_ns) WHERE webhook IS NOT NULL;
"""

FIRST = {
    "meta": "key value",
    "runs": "id name name_rank run_group created_ns resumes",
    "streams": "id run role rank attempt process started_ns world_size meta committed records points refused_records"
               " refused_points last_ns state cause ended_ns explicit",
    "batches": "id stream start end records data",
    "series": "id stream name points counted first_step max_step last_step last_ns last ascending numbers nans low high"
              " total",
    "axes": "id stream start count shown first_step last_step first_ns last_ns data blocks",
    "chunks": "id series axis overlapped kind nans low high total data blocks",
    "clocks": "stream time_ns monotonic_ns",
    "configs": "stream key value",
    "summaries": "stream key value",
    "definitions": "run name options",
    "holes": "stream start end cause at_ns",
    "files": "id stream at_ns facts artifact state digest size suffix cause",
    "artifacts": "stream number time_ns role name facts version",
    "versions": "name version created_ns type digest size facts manifest",
    "aliases": "name alias version",
    "alerts": "stream start time_ns step level title text webhook sent",
    "system": "stream start time_ns metrics",
}  # fmt: skip
"""the columns of the tables that every database of this version has; what is not named here was added since"""

FACTS = ("clocks", "configs", "summaries", "holes", "files", "artifacts", "alerts", "system")
"""tables of what a stream says beside its points"""
IN_STREAMS = ("series", "axes", "batches", *FACTS)
"""tables whose rows are of one stream"""
