"""What is read: files of every kind, compressed or not, here or in a bucket; and what is wrong with one is said."""

import csv
import gzip
import io
import json
import random
import sys

import datasets
import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from bucket import Bucket

import jaxgpt
from jaxgpt.data import records, streams
from jaxgpt.data.corpus import tokenise
from jaxgpt.data.sources import find, peek

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


TEXTS = ["one", "two lines\nof naïve text", "", "four"]
RECORDS = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}


def read(source) -> list:
    """The documents of a source: texts, or conversations."""
    return [
        "".join(document.text) if document.chat is None else document.chat
        for _, document in find(source).documents(lambda n: None)
    ]


def parquet(rows: list[dict], **options) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def as_bytes(suffix: str, rows: list[dict]) -> bytes:
    if suffix in (".jsonl", ".ndjson", ".jsonlines"):
        return "\n".join(map(json.dumps, rows)).encode()
    if suffix in (".csv", ".tsv"):
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(rows[0]), dialect="excel" if suffix == ".csv" else "excel-tab")
        writer.writeheader()
        writer.writerows(rows)
        return table.getvalue().encode()
    return json.dumps(rows, indent=1).encode() if suffix == ".json" else parquet(rows)


PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet"])
def test_records_are_read_from_every_kind_of_file(suffix, compression, tmp_path):
    path = tmp_path / f"a{suffix}{compression}"
    path.write_bytes(PACK[compression](as_bytes(suffix, RECORDS)))
    assert read(path) == read(str(path)) == read(tmp_path) == TEXTS
    if suffix in (".csv", ".tsv"):
        exchanges = [{"instruction": "Hello, you", "output": 'Say "hi"\n\tto all'}] * 3
        path.write_bytes(PACK[compression](as_bytes(suffix, exchanges)))
        expected = ({"role": "user", "content": "Hello, you"}, {"role": "assistant", "content": 'Say "hi"\n\tto all'})
        assert read(path) == [expected] * 3
        return
    path.write_bytes(PACK[compression](as_bytes(suffix, [CHAT] * 3)))
    assert read(path) == [tuple(CHAT["messages"])] * 3
    assert peek(path) == "chat"


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize("options", [{}, {"lines": False}, {"batch_size": 1}, {"force_ascii": False}], ids=str)
def test_json_that_datasets_writes_is_read_whatever_its_form(options, compression, tmp_path):
    """One object a line by default, or an array with `lines=False`; both are called .json."""
    path = tmp_path / f"a.json{compression}"
    datasets.Dataset.from_list(RECORDS).to_json(path, **options)
    assert read(path) == TEXTS
    (file,) = find(path).files
    assert file.where(2).endswith("record 2" if "lines" in options else "line 2")
    datasets.Dataset.from_list([CHAT] * 3).to_json(path, **options)
    assert read(path) == [tuple(CHAT["messages"])] * 3
    (file,) = find(path).files
    path.unlink()
    assert file.where(2) == f"{path}, record 2"


@pytest.mark.parametrize(
    "options", [{"index": False}, {"index": True}, {"sep": "\t"}, {"lineterminator": "\r\n"}], ids=str
)
def test_tables_that_datasets_writes_are_read(options, tmp_path):
    texts = ['a "quoted", text', "two\nlines", "tab\there", " space ", "'", "naïve 🎉", '"', "\r\n", "1"]
    path = tmp_path / ("a.tsv" if "sep" in options else "a.csv")
    datasets.Dataset.from_list([{"id": i, "text": text} for i, text in enumerate(texts)]).to_csv(path, **options)
    assert read(path) == texts
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Excel writes it
    assert read(path) == texts


def test_a_table_names_lines_and_a_blank_line_is_no_record(tmp_path):
    (tmp_path / "a.csv").write_text('text,id\n"two\nlines",1\n\nlast,2\n')
    documents = [document for _, document in find(tmp_path).documents(lambda n: None)]
    assert [document.number for document in documents] == [2, 5]
    assert [document.unread for document in documents] == [("id",)] * 2
    assert csv.field_size_limit() == 131_072  # of everybody else in the process
    (tmp_path / "a.csv").write_text("text\n" + "x" * 500_000)
    assert read(tmp_path) == ["x" * 500_000]


# which fields are read


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_text_field_names_the_column_of_a_text(suffix, tmp_path):
    rows = [{"content": text, "text": "no", "id": i} for i, text in enumerate(TEXTS)]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(as_bytes(suffix, rows))
    found = [document for _, document in find(path, text_field="content").documents(lambda n: None)]
    assert ["".join(document.text) for document in found] == TEXTS
    assert {document.unread for document in found} == {("text", "id")}
    assert read(path) == ["no"] * 4
    tokenizer, cache = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache"
    named = tokenise(path, tokenizer, cache=cache, text_field="content")
    assert tokenizer.decode(named.tokens) == "".join(f"{text}<|endoftext|>" for text in TEXTS if text)
    assert tokenizer.decode(tokenise(path, tokenizer, cache=cache).tokens) == "no<|endoftext|>" * 4  # another key
    assert named.unread == "fields that are not read: 'id' in 4 records, 'text' in 4 records"
    with pytest.raises(jaxgpt.InputError, match=r"(record|line) \d: there is no field 'body', which text_field="):
        peek(find(path, text_field="body"))


def test_text_field_names_the_column_of_a_saved_data_set(tmp_path):
    rows = datasets.Dataset.from_list([{"body": text, "id": i} for i, text in enumerate(TEXTS)])
    rows.save_to_disk(tmp_path / "one")
    found = [document for _, document in find(tmp_path / "one", text_field="body").documents(lambda n: None)]
    assert ["".join(document.text) for document in found] == TEXTS
    assert {document.unread for document in found} == {("id",)}


@pytest.mark.parametrize(
    ("record", "text_field", "message"),
    [
        ({"text": None}, None, "line 1: text is null: expected a string"),
        ({"text": None, "id": 3}, None, "line 1: text is null: expected a string"),
        ({"body": None}, "body", "line 1: 'body' is null: expected a string"),
        ({"body": ["x"]}, "body", "line 1: 'body' must be a string, not list"),
        ({"title": "x"}, "body", "line 1: there is no field 'body', which text_field= names; the fields are 'title'"),
        ({**CHAT}, "body", "line 1: there is no field 'body', which text_field= names; the fields are 'messages'"),
    ],
)
def test_a_record_without_its_text_is_named_with_the_true_cause(record, text_field, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    with pytest.raises(jaxgpt.InputError, match=message):
        tokenise(tmp_path / "a.jsonl", jaxgpt.load_tokenizer("tiny"), cache=tmp_path / "c", text_field=text_field)


def test_null_in_a_table_is_no_obstacle_to_a_conversation(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet([{"text": None, **CHAT}] * 2))
    assert read(tmp_path) == [tuple(CHAT["messages"])] * 2
    (tmp_path / "a.parquet").write_bytes(parquet([{"text": "a", "messages": None}, {"text": None, **CHAT}]))
    with pytest.raises(jaxgpt.InputError, match=r"a\.parquet, record 2: text is null: expected a string"):
        read(tmp_path)


def test_fields_that_are_not_read_are_counted_once_and_within_bounds(tmp_path, monkeypatch):
    tokenizer = jaxgpt.load_tokenizer("tiny")
    rows = [
        {"text": "a", "id": 1, "url": None, "tags": []},
        {"text": "b", "id": 2, "url": "x"},
        {"text": "c", "a\nb": 0},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for _ in range(2):  # written, and read back from the cache
        corpus = tokenise(tmp_path / "a.jsonl", tokenizer, cache=tmp_path / "cache")
        assert corpus.unread == "fields that are not read: 'id' in 2 records, 'a\\nb' in 1 record, 'url' in 1 record"
    many = [{"text": "a", f"field {i} {'x' * 1000}": 1} for i in range(200)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, many)))
    corpus = tokenise(tmp_path / "b.jsonl", tokenizer, cache=tmp_path / "cache")
    assert corpus.unread.endswith("56 more, others")
    assert len(corpus.unread) < 1000


def test_records_that_are_read_as_one_text_are_said_to_be(tmp_path):
    tokenizer, cache = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache"
    content = as_bytes(".jsonl", RECORDS)
    for name, data in (("part-00000", content), ("a.txt.gz", gzip.compress(b"\xef\xbb\xbf\n" + content))):
        (tmp_path / name).write_bytes(data)
        for _ in range(2):  # written, and read back from the cache
            corpus = tokenise(tmp_path / name, tokenizer, cache=cache)
            assert corpus.remarks == [
                f"{tmp_path / name} is read as ONE TEXT, though its first line is a JSON object: if it holds records, "
                "let its name end in .jsonl"
            ]
    for content in ("{ a set }\n", "[1]\n", '{"a": ' + "[" * 99_999, "text\n" + '{"text": "a"}'):
        (tmp_path / "b.txt").write_text(content)
        assert tokenise(tmp_path / "b.txt", tokenizer, cache=cache).remarks == []


# bad records


@pytest.mark.bounded
@pytest.mark.parametrize(
    ("name", "content", "n", "first"),
    [
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": \n3\n{"text": null}\n{"text": "b"}',
            3,
            "line 2: not JSON: Expecting value",
        ),
        ("a.jsonl", '{"text": "a"}\n{"no": 1}\n{"text": "b"}', 1, "line 2: neither a text nor a conversation"),
        ("a.json", '{"text": "a"}\n{"text": 3}\n{"text": "b"}', 1, "line 2: text must be a string, not int"),
        ("a.json", '[{"text": "a"}, {"text": 3}, {"text": "b"}]', 1, "record 2: text must be a string, not int"),
        ("a.csv", "text,id\na,1\nx\nx,2,3\nb,4\n", 2, "line 3: 1 fields, but the header has 2"),
        (
            "a.ndjson",
            '[]\n{"text": "a"}\n{"text": "\\ud800"}\n{"text": "b"}',
            2,
            "line 1: expected an object, not list",
        ),
    ],
)
def test_bad_records_are_named_and_left_out_where_that_is_asked(name, content, n, first, tmp_path):
    (tmp_path / name).write_text(content)
    tokenizer, cache = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache"
    with pytest.raises(jaxgpt.InputError, match=rf"{first}.* \(skip_bad_records=True leaves bad records out\)"):
        tokenise(tmp_path / name, tokenizer, cache=cache)
    for _ in range(2):  # written, and read back from the cache
        corpus = tokenise(tmp_path / name, tokenizer, cache=cache, skip_bad_records=True)
        assert tokenizer.decode(corpus.tokens) == "a<|endoftext|>b<|endoftext|>"
        assert corpus.left_out.startswith(f"{n} bad record{'s are' if n > 1 else ' is'} left out")
        assert first in corpus.left_out
        assert corpus.remarks[-1] == corpus.left_out
    assert peek(find(tmp_path / name, skip_bad_records=True)) == "text"
    with pytest.raises(jaxgpt.InputError, match=first):  # the cache does not forget
        tokenise(tmp_path / name, tokenizer, cache=cache)


def test_bad_rows_of_data_sets_and_parquet_are_left_out_too(tmp_path):
    rows = [{"text": "a"}, {"text": None}, {"text": "b"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    tokenizer, cache = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache"
    for source in (tmp_path / "saved", tmp_path / "a.parquet"):
        with pytest.raises(jaxgpt.InputError, match="record 2: text is null: expected a string"):
            tokenise(source, tokenizer, cache=cache)
        corpus = tokenise(source, tokenizer, cache=cache, skip_bad_records=True)
        assert tokenizer.decode(corpus.tokens) == "a<|endoftext|>b<|endoftext|>"
        assert corpus.remarks == [f"1 bad record is left out: {source}, record 2: text is null: expected a string"]


@pytest.mark.bounded
def test_what_is_damaged_as_a_file_is_never_left_out(tmp_path):
    """After such a place nobody knows where the next record begins."""
    tokenizer = jaxgpt.load_tokenizer("tiny")
    for name, content, message in (
        ("a.csv", 'text\na\n"b\nc\n', "line 3: not CSV: unexpected end of data"),
        ("a.csv", 'text\na\n"b"c\n', "line 3: not CSV"),
        ("a.json", '[{"text": "a"}, {"text": }]', "record 2: not JSON"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(jaxgpt.InputError, match=message):
            tokenise(tmp_path / name, tokenizer, cache=tmp_path / "cache", skip_bad_records=True)
    (tmp_path / "a.jsonl").write_text("x\n" * 9)
    with pytest.raises(jaxgpt.InputError, match=r"a\.jsonl is empty: 9 bad records are left out"):
        tokenise(tmp_path / "a.jsonl", tokenizer, cache=tmp_path / "cache", skip_bad_records=True)


@pytest.mark.parametrize("compression", PACK)
def test_a_text_is_read_as_it_is_in_parts(compression, tmp_path):
    text = "\ufeffnaïve 🎉\r\n" * 200_000
    path = tmp_path / f"text.of mine{compression}"
    path.write_bytes(PACK[compression](text.encode()))
    assert read(path) == [text]
    for _, document in find(path).documents(lambda n: None):
        assert max(map(len, document.text)) <= streams.CHUNK


def test_a_folder_is_read_in_order_of_its_paths_and_only_what_is_known(tmp_path):
    for name in ("b.txt", "a/z.MD", "a/b/c.txt.gz", "c.jsonl.zst", "x.py", "data.bin", "y.gz", ".hidden/e.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"text": name}) if ".jsonl" in name else name
        path.write_bytes(PACK["." + name.rsplit(".", 1)[-1] if name.endswith(("gz", "zst")) else ""](content.encode()))
    assert read(tmp_path) == [".hidden/e.txt", "a/b/c.txt.gz", "a/z.MD", "b.txt", "c.jsonl.zst"]
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(read(tmp_path)) == 5


def test_large_arrays_and_lines_are_read_by_and_by(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 1000)
    rows = [{"text": "x" * n, "more": [{"a": n}]} for n in (1, 10, 3000, 2, 999, 1000, 0, 12_345)]
    for suffix in (".jsonl", ".json"):
        (tmp_path / f"a{suffix}").write_bytes(as_bytes(suffix, rows))
        assert read(tmp_path / f"a{suffix}") == [row["text"] for row in rows]
    monkeypatch.setattr(records, "LONGEST", 10_000)
    for suffix, message in ((".jsonl", "line 8: this record is longer than 0 MiB"), (".json", "record 8: not JSON")):
        with pytest.raises(jaxgpt.InputError, match=message):
            read(tmp_path / f"a{suffix}")


def test_parquet_reads_no_column_but_the_text(tmp_path):
    rows = [{"text": f"text {i}", "junk": "x" * 100} for i in range(1000)]
    (tmp_path / "a.parquet").write_bytes(parquet(rows, row_group_size=300))
    heard = []
    (document,) = (find(tmp_path / "a.parquet").files,)
    assert ["".join(d.text) for d in document[0].documents(heard.append)] == [row["text"] for row in rows]
    assert 0.9 < sum(heard) / document[0].size <= 1


BAD = {
    "no JSON": ("a.jsonl", b'{"text": "a"}\n\n{"text": }', r"a\.jsonl, line 3: not JSON: Expecting value"),
    "two objects": ("a.jsonl", b'{"text": "a"} {"text": "b"}', r"a\.jsonl, line 1: not JSON: Extra data"),
    "a number": ("a.jsonl", b"3\n", r"line 1: expected an object, not int"),
    "NaN": ("a.jsonl", b'{"text": "a", "score": NaN}', "line 1: not JSON: NaN is not allowed"),
    "many digits": ("a.jsonl", b'{"text": "a", "score": ' + b"9" * 9999 + b"}", "line 1: not JSON: Exceeds the limit"),
    "depth of a call": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [{"a": '
        + b"[" * 900
        + b"]" * 900
        + b"}]}]}",
        r"line 1: (.*nested too deeply|a message has tool_calls, which|the tokenizer's chat template fails)",
    ),
    "depth of tools": (
        "a.jsonl",
        json.dumps({**CHAT, "tools": "[" * 100_000}).encode(),
        "line 1: tools is a string, but not valid JSON",
    ),
    "half in a tool": (
        "a.jsonl",
        json.dumps({**CHAT, "tools": [{"name": "x"}]}).replace('"x"', '"\\ud800"').encode(),
        "line 1: not valid Unicode: an unpaired surrogate",
    ),
    "depth": ("a.jsonl", b'{"text":' + b"[" * 200_000, "line 1: .*nested too deeply"),
    "text is a number": ("a.jsonl", b'{"text": 3}', "line 1: text must be a string, not int"),
    "no text": ("a.jsonl", b'{"title": "x"}', "line 1: neither a text nor a conversation"),
    "half a surrogate": ("a.jsonl", b'{"text": "\\ud800"}', "line 1: not valid Unicode: an unpaired surrogate"),
    "half in a chat": ("a.jsonl", json.dumps(CHAT).replace("Hi", "\\ud800").encode(), "line 1: not valid Unicode"),
    "bad role": ("a.jsonl", json.dumps(CHAT).replace("user", "robot").encode(), "line 1: the role of a message"),
    "latin-1": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "line 2: .*not UTF-8 text: byte 0xe9 at 10"),
    "a chat after a text": (
        "a.jsonl",
        b'{"text": "a"}\n' + json.dumps(CHAT).encode(),
        r"line 2: this is a conversation, and what comes before it is a text: they can't be mixed",
    ),
    "a number called .json": ("a.json", b"3", r"does not begin with \[ or \{: expected one array of objects, or one o"),
    "lines called .json": ("a.json", b'{"text": "a"}\n{"text": ', r"a\.json, line 2: not JSON: Expecting value"),
    "one object in .json": ("a.json", b'{\n  "text": "a"\n}', r"a\.json, line 1: not JSON: Expecting property name"),
    "text is null": ("a.jsonl", b'{"text": null}', r"a\.jsonl, line 1: text is null: expected a string"),
    "no text in a table": (
        "a.csv",
        b"title,body\na,b\n",
        "line 2: neither a text nor a conversation: .*'body', 'title'",
    ),
    "a column twice": ("a.csv", b"text,a,a\nx,1,2\n", r"a\.csv, line 1: the header has the column 'a' twice"),
    "a field too many": ("a.csv", b"text\na\n\nb,c\n", r"a\.csv, line 4: 2 fields, but the header has 1"),
    "an open quote": ("a.csv", b'text\na\n"b\n\nc\n', r"a\.csv, line 3: not CSV: unexpected end of data"),
    "a quote inside": ("a.tsv", b'text\tid\n"a" b\t1\n', r"a\.tsv, line 2: not CSV: '\\t' expected after '\"'"),
    "an old Mac's lines": ("a.csv", b"text\rab\r", r"a\.csv, line 1: not CSV: new-line character"),
    "UTF-16 in a table": (
        "a.csv",
        "text\na\n".encode("utf-16"),
        r"a\.csv, line 1: (not UTF-8 text|it contains a zero byte)",
    ),
    "latin-1 in a table": ("a.csv", b"text\nab\ncaf\xe9\n", r"a\.csv, line 3: not UTF-8 text: byte 0xe9 at 3"),
    "a zero byte in a table": ("a.csv", b"text\na\0b\n", r"a\.csv, line 2: it contains a zero byte, so it is not text"),
    "only a header": ("a.csv", b"text,id\n", "a.csv is empty"),
    "no header": ("a.csv", b"\n", "a.csv is empty"),
    "no comma": ("a.json", b'[{"text": "a"} {"text": "b"}]', "record 1: expected a comma or the end of the array"),
    "no end": ("a.json", b'[{"text": "a"}', "record 1: expected a comma or the end of the array"),
    "nothing after the comma": (
        "a.json",
        b'[{"text": "a"},',
        "record 2: expected an object, not the end of the file",
    ),
    "trailing comma": ("a.json", b'[{"text": "a"},]', "record 2: expected an object, not ]"),
    "half an object": ("a.json", b'[{"text": "a"}, {"text": "b', "record 2: not JSON: Unterminated string"),
    "something follows": ("a.json", b'[{"text": "a"}] ]', "unexpected text after the array"),
    "depth in an array": ("a.json", b'[{"text":' + b"[" * 200_000, "record 1: .*nested too deeply"),
    "no Parquet": ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", r"a\.parquet can't be read as Parquet"),
    "nothing in Parquet": ("a.parquet", b"", r"a\.parquet can't be read as Parquet"),
    "no gzip": ("a.txt.gz", b"just text", r"a\.txt\.gz can't be read: BadGzipFile"),
    "half of gzip": ("a.txt.gz", gzip.compress(b"a text " * 99)[:-12], r"can't be read: EOFError"),
    "damaged gzip": ("a.txt.gz", gzip.compress(b"a text " * 99)[:-8] + bytes(8), "can't be read: BadGzipFile: CRC"),
    "no zstd": ("a.jsonl.zst", b"just text", r"a\.jsonl\.zst can't be read: ZstdError"),
    "half of zstd": ("a.jsonl.zst", zstd.compress(b'{"text": "a"}\n' * 99)[:-1], "can't be read: EOFError"),
    "a zero byte": ("a.txt", b"a text\n" * 300_000 + b"\0", "a.txt is not text: there is a zero byte at 2,100,000"),
    "UTF-8 that ends": ("a.txt", b"a text\n" * 300_000 + b"\xe2\x82", "is not UTF-8 text: byte 0xe2 at 2,100,000"),
    "UTF-8 over parts": ("a.txt", b"x" * (2**20 - 1) + b"\xe2xx", "is not UTF-8 text: byte 0xe2 at 1,048,575"),
    "empty": ("a.txt", b"", "a.txt is empty"),
    "blank": ("a.txt", b" \n" * 999_999, "a.txt is empty"),
    "blank records": ("a.jsonl", b'{"text": ""}\n\n{"text": " "}\n', "a.jsonl is empty"),
    "an empty array": ("a.json", b" [ ] ", "a.json is empty"),
}


@pytest.mark.bounded
@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_said(name, tmp_path):
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(jaxgpt.InputError, match=message):
        tokenise(tmp_path / file, jaxgpt.load_tokenizer("tiny"), cache=tmp_path / "cache")


def test_texts_and_chats_in_different_files_do_not_mix(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text(json.dumps(CHAT))
    assert peek(tmp_path) == "text"
    with pytest.raises(
        jaxgpt.InputError, match=r"b\.jsonl, line 1: this is a conversation, and what comes before it is a text"
    ):
        read(tmp_path)


@pytest.mark.bounded(megabytes=200)
def test_a_bomb_takes_no_memory(tmp_path):
    """Two gigabytes of it; the first hundred megabytes are enough to see that no more than a part is in memory."""
    compressor, line = zstd.ZstdCompressor(), b'{"text": "' + b"x" * 2**20 + b'"}\n'
    bomb = b"".join(compressor.compress(line) for _ in range(100)) + compressor.flush()
    assert len(bomb) < 2**20
    (tmp_path / "a.jsonl.zst").write_bytes(bomb)
    lengths = [len("".join(document.text)) for _, document in find(tmp_path).documents(lambda n: None)]
    assert lengths == [2**20] * 100
    (tmp_path / "a.jsonl.zst").write_bytes(zstd.compress(bytes(2**29)))
    with pytest.raises(jaxgpt.InputError, match=r"line 1: this record is longer than 64 MiB"):
        read(tmp_path)


@pytest.mark.bounded
@pytest.mark.parametrize("content", ['text\n"' + "x\n" * 9999, "text\n" + "x" * 9999, "text," + "," * 9999], ids=len)
def test_a_table_of_one_endless_record_is_refused_before_it_is_in_memory(content, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST", 1000)
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(jaxgpt.InputError, match=r"a\.csv, line \d+: this record is longer than 0 MiB"):
        read(tmp_path)


@pytest.mark.bounded
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere", "/nowhere is neither a file nor a folder"),
        ("http://127.0.0.1/x", "http:// can't be read; expected a path or one of gs://, s3://, az://, hf://"),
        ("hf:a/b/c", "hf:a/b/c is not of the form hf:OWNER/NAME"),
        ("hf:../../x", "is not of the form hf:OWNER/NAME"),
        ("hf:", "is not of the form hf:OWNER/NAME"),
        ("gs://", "gs://: the name of the bucket is missing; expected gs://BUCKET/FILE"),
        ("s3:///", "the name of the bucket is missing"),
    ],
)
def test_what_is_no_source_is_said(source, message):
    with pytest.raises(jaxgpt.InputError, match=message):
        find(source)


@pytest.mark.bounded
@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.json", "a.csv", "a.tsv.gz", "a.parquet", "a.txt.gz", "a.jsonl.zst", "a.json.gz", "a.txt"],
)
def test_noise_gets_our_own_error(name, tmp_path):
    rng = random.Random(0)
    suffix = next(s for s in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt") if s in name)
    whole = "naïve text\n".encode() * 50 if suffix == ".txt" else as_bytes(suffix, RECORDS)
    seed = PACK["." + name.rsplit(".", 1)[-1] if name.endswith(("gz", "zst")) else ""](whole)
    for i in range(300):
        data = bytearray(rng.randbytes(rng.randrange(1, 200)) if i % 10 == 0 else seed)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / name).write_bytes(data[: rng.randrange(len(data)) if i % 3 == 0 else None])
        try:
            read(tmp_path / name)
        except jaxgpt.InputError as error:
            assert name in str(error)  # noqa: PT017


# Hugging Face


def test_saved_data_sets_are_read_and_their_validation_is_held_out(tmp_path):
    rows = datasets.Dataset.from_list(RECORDS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": rows, "train": rows.select([0, 1]), "validation": rows.select([3])}).save_to_disk(
        tmp_path / "many"
    )
    assert read(tmp_path / "one") == TEXTS
    assert read(tmp_path / "many") == TEXTS[:2]
    tokenizer = jaxgpt.load_tokenizer("tiny")
    corpus = tokenise(tmp_path / "many", tokenizer, cache=tmp_path / "cache")
    assert tokenizer.decode(corpus.tokens) == "one<|endoftext|>two lines\nof naïve text<|endoftext|>"
    assert tokenizer.decode(corpus.held_out.tokens) == "four<|endoftext|>"
    assert corpus.origin(0) == f"{tmp_path / 'many'}:train, record 1"
    assert corpus.digest != corpus.held_out.digest
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "test")
    with pytest.raises(jaxgpt.InputError, match="has no split train; its splits are test"):
        find(tmp_path / "test")


@pytest.mark.bounded
def test_a_damaged_data_set_is_refused(tmp_path):
    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "one")
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    with pytest.raises(jaxgpt.InputError, match="one can't be read"):
        read(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("[")
    with pytest.raises(jaxgpt.InputError, match="one can't be read as a saved data set"):
        find(tmp_path / "one")


def test_a_name_on_the_hub_is_asked_for_by_split_and_never_runs_code(monkeypatch, tmp_path):
    asked, rows = [], datasets.Dataset.from_list([CHAT] * 9)

    def load_dataset(name, **options):
        asked.append((name, options))
        if name == "none/such":
            raise FileNotFoundError("Dataset 'none/such' doesn't exist\non the Hub")
        return datasets.DatasetDict({"train": rows, "test": rows.select([0])}) if options["split"] is None else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read("hf:me/mine")) == 9
    assert find("hf:me/mine").held_out.name == "hf:me/mine:test"
    assert peek("hf:me/mine:train[:10%]") == "chat"
    assert asked[0] == ("me/mine", {"split": None})
    assert asked[-1] == ("me/mine", {"split": "train[:10%]"})
    with pytest.raises(jaxgpt.InputError, match="hf:none/such can't be read: FileNotFoundError: Dataset 'none/such' d"):
        find("hf:none/such")
    parts = [find("hf:x:train").files[0]] + [type(find("hf:x:train").files[0])("x", rows.select([i])) for i in (0, 1)]
    assert len({part.sha256(lambda n: None) for part in parts}) == 2  # two rows that are the same are the same


@pytest.mark.parametrize(
    ("package", "source", "message"),
    [
        ("datasets", "hf:me/mine", r"pip install 'jaxgpt\[datasets\]'"),
        ("pyarrow.parquet", "a.parquet", r"pip install 'jaxgpt\[datasets\]'"),
        ("gcsfs", "gs://none-here/x", r"pip install 'jaxgpt\[gcs\]'"),
        ("s3fs", "s3://none-here/x", "pip install 's3fs'"),
    ],
)
def test_a_package_that_is_absent_is_named(package, source, message, tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(parquet(RECORDS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "pyarrow.parquet":
        monkeypatch.delattr(pyarrow, "parquet")
    with pytest.raises(jaxgpt.InputError, match=message):
        read(source)


# a bucket


@pytest.fixture(scope="module")
def bucket():
    rows = [{"text": f"text {i}"} for i in range(1000)]
    objects = {
        "data/": b"",
        "data/b.txt": ("naïve\n" * 300_000).encode(),
        "data/a/c.jsonl.gz": gzip.compress(as_bytes(".jsonl", RECORDS)),
        "data/a/d.parquet": parquet(rows, row_group_size=100),
        "data/e.py": b"no",
        "database/x.txt": b"not below data",
        "bad.txt": b"caf\xe9",
        "fresh/a.jsonl": as_bytes(".jsonl", RECORDS),
        "fresh/b.txt": b"some words",
    }
    with pytest.MonkeyPatch.context() as patch, Bucket("mine", objects) as served:
        patch.setenv("STORAGE_EMULATOR_HOST", served.url)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield served


def test_a_bucket_is_read_like_a_folder(bucket, tmp_path):
    expected = [*TEXTS, *(f"text {i}" for i in range(1000)), "naïve\n" * 300_000]
    assert read("gs://mine/data") == read("gs://mine/data/") == expected
    assert read("gs://mine/data/a/d.parquet") == expected[4:-1]
    assert any("Range" not in path and "alt=media" in path for path in bucket.requests)
    tokenizer = jaxgpt.load_tokenizer("tiny")
    corpus = tokenise("gs://mine/data", tokenizer, cache=tmp_path)
    assert corpus.origin(0) == "gs://mine/data/a/c.jsonl.gz, line 1"
    assert len(corpus.ends) == 1004
    bucket.requests.clear()


def test_a_source_of_a_bucket_is_looked_up_once_and_handed_on(bucket, tmp_path):
    bucket.requests.clear()
    source = find("gs://mine/fresh")  # which nothing has listed yet: gcsfs remembers
    looked_up = len(bucket.requests)
    assert looked_up > 0
    assert peek(source) == "text"
    assert peek(find(source)) == source.kind == "text"
    peeked = bucket.requests[looked_up:]
    assert sum("alt=media" in path for path in peeked) <= 1
    begun = len(bucket.requests)
    tokenise(source, jaxgpt.load_tokenizer("tiny"), cache=tmp_path)
    assert not any("prefix=" in path for path in bucket.requests[begun:])  # no listing of a folder
    bucket.requests.clear()
    assert peek(find("gs://mine/data/b.txt")) == "text"
    assert not any("alt=media" in path for path in bucket.requests)  # plain text need not be opened for that
    bucket.requests.clear()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gs://mine/nothing.txt", "gs://mine/nothing.txt is neither a file nor a folder"),
        ("gs://mine/bad.txt", "gs://mine/bad.txt is not UTF-8 text: byte 0xe9 at 3"),
        ("gs://another/x.txt", "gs://another/x.txt is neither a file nor a folder"),
    ],
)
def test_what_a_bucket_does_not_hold_is_said(bucket, source, message):
    with pytest.raises(jaxgpt.InputError, match=message):
        read(source)


def test_a_bucket_that_refuses_is_named(bucket, monkeypatch):
    monkeypatch.setattr(bucket, "status", 403)
    with pytest.raises(jaxgpt.InputError, match=r"gs://mine/closed/x\.txt can't be read"):
        read("gs://mine/closed/x.txt")
