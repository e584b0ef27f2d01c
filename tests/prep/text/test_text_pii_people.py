"""Identity numbers, street addresses, and names beside personal data."""

import pyarrow as pa
import pytest

from jdc.prep.text import pii_people
from jdc.prep.text.pii import mask_pii


def masked(text, **kinds):
  wanted = {"ssn": True, "street": True, "name": True, **kinds}
  found, counts = mask_pii(pa.array([text]), **wanted)
  return found[0].as_py(), {k: int(v[0]) for k, v in counts.items() if v[0]}


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("SSN 219-09-9999.", ["219-09-9999"]),
    ("ITIN 912-70-1234 and 900-93-1234", ["912-70-1234"]),  # 93 is no group of ITINs
    ("000-12-3456, 666-12-3456, 123-00-4567, 123-45-0000", []),
    ("call 555-219-09-9999 or 219-09-9999-1", []),
    ("a219-09-9999 219-09-99990 1.219-09-9999", []),
  ],
)
def test_identity_numbers_are_those_that_are_issued(text, found):
  assert [text[slice(*span)] for span in pii_people.ssns(text)] == found


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("at 12 Elm St, Apt 4, Salem, OR 97301.", ["12 Elm St, Apt 4, Salem, OR 97301"]),
    ("1600 Pennsylvania Avenue is known", []),  # a year without more behind it
    ("1600 Elm Ave, Washington, DC 20500", ["1600 Elm Ave, Washington, DC 20500"]),
    ("In 1929 Wall Street fell, and 30 people left.", []),
    ("Visit 221 Baker Street today", ["221 Baker Street"]),
    ("5 days on the Road", []),
    ("he ran 100 Metres Way behind", ["100 Metres Way"]),  # a pattern, not proof
    ("$12 Park Place", []),
    ("42 5th Avenue, New York, NY 10011", ["42 5th Avenue, New York, NY 10011"]),
  ],
)
def test_street_addresses(text, found):
  assert [text[slice(*span)] for span in pii_people.streets(text)] == found


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("Contact Ann B. Lee at ann@example.org.", "Contact <NAME> at <EMAIL>."),
    ("Call Jo Fox on +1 415-238-0174!", "Call <NAME> on <PHONE>!"),
    ("Jo Fox lives at 12 Elm St, Salem, OR 97301.", "<NAME> lives at <STREET>."),
    ("The number of Jo Fox is 219-09-9999", "The number of <NAME> is <SSN>"),
    ("Jo Fox (jo@example.org) wrote it", "<NAME> (<EMAIL>) wrote it"),
    ("As Jo Fox wrote. Mail ann@example.org", "As Jo Fox wrote. Mail <EMAIL>"),
    ("Jo Fox\nann@example.org", "Jo Fox\n<EMAIL>"),
    ("Questions? Write to ann@example.org", "Questions? Write to <EMAIL>"),
    ("Lee at ann@example.org", "Lee at <EMAIL>"),  # one word is no name by its form
    ("Jo Fox likes figs; nobody knows why.", "Jo Fox likes figs; nobody knows why."),
  ],
)
def test_names_are_masked_beside_what_is_masked(text, expected):
  once, _ = masked(text)
  assert once == expected
  assert masked(once)[0] == once


def test_they_are_off_by_default_and_counted_where_they_are_wanted():
  text = "Contact Ann Lee at ann@example.org, 219-09-9999, 12 Elm St, Salem"
  plain, counts = mask_pii(pa.array([text]))
  assert plain[0].as_py() == text.replace("ann@example.org", "<EMAIL>")
  assert not {"pii_ssn", "pii_street", "pii_name"} & set(counts)
  assert masked(text)[1] == {"pii_email": 1, "pii_ssn": 1, "pii_street": 1, "pii_name": 1}
  assert masked(text, name=False)[1] == {"pii_email": 1, "pii_ssn": 1, "pii_street": 1}


def test_documents_without_a_trigger_are_not_looked_into(monkeypatch):
  """The patterns that choose documents miss none that the rules find something in."""
  texts = ["219-09-9999", "12 Elm St", "12\tElm Rd.", "7b Old Mill Lane", "nothing at all"]
  found, counts = mask_pii(pa.array(texts), ssn=True, street=True)
  direct = [len(pii_people.ssns(t)) + len(pii_people.streets(t)) for t in texts]
  assert (counts["pii_ssn"] + counts["pii_street"]).tolist() == direct
  assert found[4].as_py() == "nothing at all"
