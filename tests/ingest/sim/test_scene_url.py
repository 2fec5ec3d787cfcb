"""A sim:// URL parses to what it says, or the error says what is wrong and what is right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.sim.scene_url import SceneSpec, SceneUrlError, parse


def test_a_bare_url_is_the_default_street() -> None:
    assert parse("sim://street") == SceneSpec()


def test_every_key_is_read() -> None:
    url = "sim://street?seed=9&size=640x360&fps=12.5&objects=3&quiet=6/10&light=night&noise=0&gop=1"
    assert parse(url) == SceneSpec("street", 9, 640, 360, 12.5, 3, 6.0, 10.0, "night", 0, 1.0)


@given(
    st.builds(
        SceneSpec,
        seed=st.integers(0, 2**32 - 1),
        width=st.integers(500, 600).map(lambda half: 2 * half),
        height=st.integers(300, 900).map(lambda half: 2 * half),
        fps=st.integers(1, 60).map(float),
        objects=st.integers(0, 60),
        light=st.sampled_from(["day", "dusk", "night"]),
        noise=st.integers(0, 20),
    )
)
def test_a_spec_survives_the_way_through_its_url(spec: SceneSpec) -> None:
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("rtsp://street", "is not sim://SCENE"),
        ("sim://street/extra", "is not sim://SCENE"),
        ("sim://streat", "did you mean 'street'"),
        ("sim://street?sede=1", "did you mean 'seed'"),
        ("sim://street?zzz=1", "valid: seed, size, fps"),
        ("sim://street?seed=1&seed=2", "given twice"),
        ("sim://street?seed", "KEY=VALUE"),
        ("sim://street?seed=-1", "from 0 to 4294967295"),
        ("sim://street?seed=99999999999", "from 0 to 4294967295"),
        ("sim://street?size=1280", "WIDTHxHEIGHT"),
        ("sim://street?size=641x360", "even pixels"),
        ("sim://street?size=1920x160", "WIDTH/HEIGHT"),
        ("sim://street?size=9998x9998", "to 3840x2160"),
        ("sim://street?fps=0", "from 1 to 60"),
        ("sim://street?fps=nan", "from 1 to 60"),
        ("sim://street?fps=fast", "from 1 to 60"),
        ("sim://street?objects=61", "from 0 to 60"),
        ("sim://street?quiet=6", "STILL/PERIOD"),
        ("sim://street?quiet=12/10", "STILL/PERIOD"),
        ("sim://street?light=noon", "day, dusk or night"),
        ("sim://street?noise=21", "from 0 to 20"),
        ("sim://street?gop=0", "from 0.1 to 60"),
    ],
)
def test_a_bad_url_says_what_was_expected(url: str, says: str) -> None:
    with pytest.raises(SceneUrlError) as caught:
        parse(url)
    assert says in str(caught.value)
