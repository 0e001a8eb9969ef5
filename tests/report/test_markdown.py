from mpelu.report.markdown import markdown_table
from mpelu.report.summary import summarize


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_every_row_has_the_columns_of_the_head(study_records):
    head, rules, *rows = markdown_table(summarize(study_records)).splitlines()
    assert cells(head)[2:4] == ["test error %, last epoch", "test error %, best epoch"]
    assert {len(cells(line)) for line in (rules, *rows)} == {len(cells(head))}
    assert len(rows) == 5


def test_the_numbers_are_those_of_the_records(make_record):
    records = [make_record("r", seed=0), make_record("r", seed=1, errors=(50.0, 12.0, 14.0))]
    *_, row = markdown_table(summarize(records)).splitlines()
    assert cells(row) == [
        "r", "digits, scale cpu", "12.00 (13.00 ± 1.41), n = 2", "10.00 (11.00 ± 1.41), n = 2", "0.500", "0",
        "123,456", "9.3 s",
    ]  # fmt: skip


def test_a_name_cannot_leave_its_cell(make_record):
    table = markdown_table(summarize([make_record("a|b<script>_c_\nd")]))
    assert "| a\\|b&lt;script>\\_c\\_ d |" in table
    assert len(table.splitlines()) == 3
