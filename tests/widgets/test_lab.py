"""The dashboard without a page: runs, wishes, refusals, errors, linking, saving."""

import base64
import io
import json
import threading
import time

import ipywidgets
import numpy as np
import pytest
from fake_engine import CachePrior as fake_cache_prior
from fake_engine import FakeDisk, FakeEngine
from PIL import Image

import moe_lab as ml
from moe_lab import Sampling
from moe_lab.errors import BusyError, SettingError
from moe_lab.policy import Parameter, Policy, Schedule
from moe_lab_widgets import Lab


def sent(lab):
    """Collect the messages that leave from now on."""
    messages = []
    lab.send = lambda content, buffers=None: messages.append((content, buffers))
    return messages


# --------------------------------------------------------------------------------------------- runs


def test_a_run_in_the_background_ends_with_its_text(lab, engine):
    lab.start("a b", max_new_tokens=20)
    assert lab.state == "running"
    result = lab.result(10)
    assert len(result.ids) == 20
    assert result.text == "".join(engine.word(i + 1) for i in range(20))
    assert (lab.state, lab.finish, result.finish) == ("finished", "length", "length")


def test_no_thread_is_left_after_a_run(lab, until):
    before = set(threading.enumerate())                # kernels keep helpers of their own from an earlier test on
    lab.start("a", max_new_tokens=5)
    assert "moe-lab" in {t.name for t in set(threading.enumerate()) - before}
    lab.result(5)
    until(lambda: set(threading.enumerate()) <= before)


def test_a_second_start_is_refused_and_names_stop(lab):
    lab.start("a", max_new_tokens=5000)
    with pytest.raises(BusyError, match=r"lab\.stop\(\)"):
        lab.start("a")


def test_an_engine_that_generates_elsewhere_is_refused(lab, engine):
    steps = engine.stream("a")
    next(steps)
    with pytest.raises(BusyError, match="outside the dashboard"):
        lab.start("a")
    steps.close()


def test_a_setting_that_the_engine_refuses_is_raised_where_start_was_called(lab):
    with pytest.raises(SettingError, match="max_new_tokens"):
        lab.start("a", max_new_tokens=0)
    assert lab.state == "ready"


def test_options_that_are_no_traits_hold_for_the_run_button_too(lab, engine):
    asked = []
    stream = engine.stream
    engine.stream = lambda prompt, **options: (asked.append(options), stream(prompt, **{**options, "max_new_tokens": 2}))[1]
    lab.start("a", stop_at_end=False, temperature=0.3)
    lab.result(5)
    before = len(asked)
    lab._heard(lab, {"do": "run"}, [])
    lab.result(5)
    assert len(asked) > before
    assert {a["stop_at_end"] for a in asked} == {False}
    assert {a["temperature"] for a in asked} == {0.3}


def test_stop_ends_within_a_token(lab, engine, until):
    engine.token_s = 0.05
    lab.start("a", max_new_tokens=1000)
    until(lambda: engine.telemetry.token > 2)
    at = engine.telemetry.token
    lab.stop()
    assert lab.state == "stopped"
    assert not engine.busy
    assert engine.telemetry.token <= at + 2            # the one under way, and one that ended while we looked


def test_pause_stands_still_and_resume_goes_on(lab, engine, until):
    lab.start("a", max_new_tokens=10_000)
    until(lambda: engine.telemetry.token > 5)
    lab.pause()
    until(lambda: lab.state == "paused")
    at = engine.telemetry.token
    time.sleep(0.05)
    assert engine.telemetry.token == at
    lab.resume()
    until(lambda: engine.telemetry.token > at + 3)
    assert lab.state == "running"


def test_one_token_is_one_token_and_is_explained(lab, engine, until):
    messages = sent(lab)
    for count in (1, 2, 3):
        lab.one_token()
        until(lambda count=count: engine.telemetry.token == count and lab.state == "paused")
    time.sleep(0.05)
    assert engine.telemetry.token == 3
    assert messages[-1][0]["said"] == engine.explain()


def test_the_picture_of_a_pause_shows_the_very_last_token(lab, engine, until):
    messages = sent(lab)
    lab.start("a", max_new_tokens=10_000)
    until(lambda: engine.telemetry.token > 20)
    lab.pause()
    until(lambda: lab.state == "paused")
    until(lambda: messages[-1][1][0][1] == 1)
    assert int.from_bytes(messages[-1][1][0][12:16], "little") == engine.telemetry.token
    assert sum(len(m[0]["text"][1]) for m in messages) == engine.telemetry.token


def test_watch_yields_every_step_and_shows_them(lab, engine):
    messages = sent(lab)
    steps = list(lab.watch(engine.stream("a", max_new_tokens=30)))
    assert [s.index for s in steps] == list(range(30))
    assert lab.state == "finished"
    assert "".join(p[0] for m in messages for p in m[0]["text"][1]) == "".join(s.text for s in steps)


def test_a_loop_that_is_left_leaves_a_stopped_dashboard_and_a_free_engine(lab, engine):
    for step in lab.watch(engine.stream("a", max_new_tokens=30)):
        if step.index == 3:
            break
    assert lab.state == "stopped"
    assert not engine.busy
    lab.start("a", max_new_tokens=2)
    lab.result(5)


def test_watch_says_that_controls_may_wait(lab, engine):
    steps = lab.watch(engine.stream("a", max_new_tokens=3))
    next(steps)
    assert lab.foreground
    list(steps)
    assert not lab.foreground


# ------------------------------------------------------------------------------------------- wishes


def test_a_setting_acts_at_once_where_nobody_generates(lab, engine):
    lab.slots = 20
    lab.routing = "cache-prior"
    lab.penalty = 0.75
    lab.eviction = "aged-lfu"
    lab.half_life = 100
    assert engine.cache.slots == 20
    assert engine.routing.values() == {"penalty": 0.75, "keep_top": 1}
    assert engine.eviction.values() == {"half_life": 100}


def test_a_setting_acts_between_tokens_of_a_run(lab, engine, until):
    threads = set()
    resize = engine._resize
    engine._resize = lambda slots: (threads.add(threading.current_thread().name), resize(slots))
    lab.start("a", max_new_tokens=10_000)
    lab.slots = 40
    lab.routing = "cache-prior"
    lab.penalty = 0.9
    until(lambda: engine.cache.slots == 40 and engine.routing.values().get("penalty") == 0.9)
    assert threads == {"moe-lab"}
    assert lab.routing_values == {"penalty": 0.9, "keep_top": 1}


@pytest.mark.parametrize(("knob", "value", "field"), [
    ("temperature", 0.7, 0.7), ("top_k", 5, 5), ("top_p", 0.9, 0.9), ("repetition_penalty", 1.3, 1.3), ("seed", 9, 9)])
def test_sampling_acts_between_tokens_of_a_run_and_stays_for_the_next(lab, engine, until, knob, value, field):
    lab.start("a", max_new_tokens=10_000)
    until(lambda: engine.telemetry.token > 2)
    setattr(lab, knob, value)
    until(lambda: getattr(engine.sampling, knob) == field)
    assert lab.state == "running"
    assert [m["words"] for m in lab._session.history.marks()] == [f"{knob} {value:g}"]
    lab.stop()
    lab.start("a", max_new_tokens=2)
    lab.result(5)
    assert getattr(engine.sampling, knob) == field
    setattr(lab, knob, {"top_p": 1.0, "repetition_penalty": 1.0}.get(knob, 0))
    lab.start("a", max_new_tokens=2)
    lab.result(5)
    assert engine.sampling == Sampling(temperature=0.0 if knob == "temperature" else 1.0)


def test_a_sampling_that_is_refused_says_why_and_goes_back(lab, engine, until):
    lab.start("a", max_new_tokens=10_000, temperature=0.5)
    assert lab.temperature == 0.5
    lab.top_p = 1.5
    lab.temperature = -1.0
    until(lambda: set(lab.refusals) == {"top_p", "temperature"})
    assert (lab.top_p, lab.temperature) == (1.0, 0.5)
    assert "type temperature=0.8" in lab.refusals["temperature"]
    assert lab.state == "running"


def test_the_sampling_of_a_loop_in_a_cell_or_of_code_is_shown(lab, engine):
    steps = lab.watch(engine.stream("a", max_new_tokens=4, temperature=0.8, seed=4))
    next(steps)
    assert (lab.temperature, lab.seed) == (0.8, 4)
    engine.sampling = Sampling(top_k=3)
    lab._after_cell()
    assert (lab.temperature, lab.top_k) == (0.0, 3)
    list(steps)


def test_the_end_of_a_drag_always_arrives(lab, engine, until):
    lab.start("a", max_new_tokens=10_000)
    for slots in range(9, 64):
        lab.slots = slots
        time.sleep(0.0005)
    until(lambda: engine.cache.slots == 63)
    time.sleep(0.05)
    assert (lab.slots, engine.cache.slots) == (63, 63)


def test_a_refused_setting_leaves_the_last_good_value_and_says_why(lab, engine):
    lab.slots = 3
    assert (lab.slots, engine.cache.slots) == (16, 16)
    assert "under the floor" in lab.refusals["slots"]
    lab.slots = 12
    assert lab.refusals == {}


def test_an_unknown_policy_or_parameter_is_refused_with_what_there_is(lab):
    lab.routing = "cache-piror"
    assert lab.routing == "original"
    assert "cache-prior" in lab.refusals["routing"]
    lab.routing = "cache-prior"
    lab.routing_values = {"penalti": 1.0}
    assert "penalty, keep_top" in lab.refusals["routing"]
    assert lab.routing_values == {"penalty": 0.5, "keep_top": 1}


def test_a_change_by_code_on_the_engine_is_shown(lab, engine):
    engine.routing = fake_policy()(strength=0.25)
    engine.cache.resize(33)
    lab._session.tell()
    assert (lab.routing, lab.routing_values, lab.slots) == ("mine", {"strength": 0.25}, 33)
    assert "mine" in [p["name"] for p in lab.offered["routing"]]


def fake_policy():
    class Mine(Policy):
        """A policy of the user's own."""

        kind = "routing"
        strength = Parameter(0.5, 0, 2, unit="nats", doc="how strong")
        lossy = True

    return Mine


def test_a_policy_of_ones_own_gets_its_controls_from_its_declaration(engine):
    board = Lab(engine, policies=[fake_policy()])
    offered = {p["name"]: p for p in board.offered["routing"]}["mine"]
    assert offered["parameters"] == [{"name": "strength", "default": 0.5, "low": 0.0, "high": 2.0, "unit": "nats",
                                      "doc": "how strong", "integer": False, "open_ended": False, "rare": False, "words": {}}]
    board.routing = "mine"
    board.strength = 1.5
    assert engine.routing.values() == {"strength": 1.5}
    board.close()


def worded_policy():
    class Worded(Policy):
        """Has words for two numbers."""

        kind = "routing"
        strength = Parameter(0.5, 0, 2)
        reach = Parameter(0, 0, 64, words={"running": 0, "token": -1}, rare=True)
        lossy = True

    return Worded


def test_a_word_may_be_chosen_where_a_parameter_has_words(engine):
    board = Lab(engine, policies=[worded_policy()], routing="worded")
    parameters = {p["name"]: p for p in {p["name"]: p for p in board.offered["routing"]}["worded"]["parameters"]}
    assert parameters["reach"]["words"] == {"running": 0.0, "token": -1.0}
    board.reach = "token"
    assert engine.routing.values()["reach"] == -1
    assert board.reach == -1.0
    board.routing_values = {"reach": "running"}
    assert (engine.routing.values()["reach"], board.routing_values["reach"]) == (0, 0)
    board.reach = "tomorrow"
    assert "'running', 'token'" in board.refusals["routing.reach"]
    assert (board.reach, engine.routing.values()["reach"]) == (0.0, 0)
    board.reach = 12
    assert board.refusals == {}
    board.start("a", max_new_tokens=2)
    board.result(5)
    board.reach = "token"
    assert [m["words"] for m in board._session.history.marks()] == ["reach token"]
    board.close()


@pytest.mark.parametrize(("value", "text"), [
    ([0.25, 0.5], "[0.25, 0.5]"), (Schedule({0: 0.0, 256: 0.5}), "Schedule({0: 0, 256: 0.5})")])
def test_a_value_by_layer_or_token_is_shown_as_text_and_one_number_takes_its_place(lab, engine, value, text):
    engine.routing = fake_cache_prior(penalty=value, keep_top=2)
    lab._session.tell()
    assert (lab.penalty, lab.routing_values) == (text, {"penalty": text, "keep_top": 2})
    json.dumps(lab.get_state())
    lab.keep_top = 3                                   # the list stays as it is, to the last digit
    assert engine.routing == fake_cache_prior(penalty=value, keep_top=3)
    lab.penalty = 0.25
    assert engine.routing == fake_cache_prior(penalty=0.25, keep_top=3)
    lab.penalty = value                                # by code
    assert engine.routing == fake_cache_prior(penalty=value, keep_top=3)
    lab.penalty = 0.5
    lab.routing_values = {**lab.routing_values, "penalty": text}      # typed into the page
    assert engine.routing == fake_cache_prior(penalty=value, keep_top=3)


@pytest.mark.parametrize("text", ["", "much", "[0.1, 'a']", "Schedule({5: 1})", "__import__('os')", "[" * 500])
def test_what_cannot_be_read_is_refused_in_words(lab, engine, text):
    lab.routing = "cache-prior"
    lab.routing_values = {"penalty": text}
    assert lab.refusals["routing.penalty"]
    assert engine.routing.values()["penalty"] == lab.penalty == 0.5


def test_a_policy_made_after_the_dashboard_is_offered_after_its_cell(lab, engine):
    assert "nudge" not in [p["name"] for p in lab.offered["routing"]]

    @ml.routing.policy(bonus=Parameter(1, 0, 4, unit="logits", doc="added to residents"))
    def nudge(logits, weights, K, resident, state, params, scores):
        """Raises residents a little."""
        scores[:] = logits + params[0] * resident

    @ml.eviction.policy
    def oldest(expert, stats, state, params, now):
        return float(stats.arrived[expert])

    lab._after_cell()
    offered = {p["name"]: p for p in lab.offered["routing"]}["nudge"]
    assert (offered["doc"], [p["name"] for p in offered["parameters"]]) == ("Raises residents a little.", ["bonus"])
    lab.routing = "nudge"
    lab.bonus = 2.5
    lab.eviction = "oldest"
    assert engine.routing == nudge(bonus=2.5)
    assert engine.eviction == oldest()


def test_a_cell_run_again_replaces_its_policy_and_the_engine_keeps_the_old_one_until_it_is_set(lab, engine):
    def cell(**parameters):
        @ml.routing.policy(**parameters)
        def again(logits, weights, K, resident, state, params, scores):
            scores[:] = logits

        return again

    first = cell(one=Parameter(1, 0, 4))
    lab._after_cell()
    lab.routing = "again"
    assert type(engine.routing) is first
    second = cell(two=Parameter(2, 0, 4))
    for _ in range(2):
        lab._after_cell()
        assert [[q["name"] for q in p["parameters"]] for p in lab.offered["routing"] if p["name"] == "again"] == [["two"]]
    assert type(engine.routing) is first
    lab.two = 3
    assert engine.routing == second(two=3)


def test_settings_given_at_the_start_are_set_on_the_engine(engine):
    board = Lab(engine, slots=24, routing="cache-prior", temperature=0.5, seed=3)
    assert (engine.cache.slots, engine.routing.name, board.temperature, board.seed) == (24, "cache-prior", 0.5, 3)
    board.close()


def test_an_unknown_keyword_is_refused(engine):
    with pytest.raises(SettingError, match="no setting 'slot'"):
        Lab(engine, slot=3)


def test_any_ipywidgets_control_can_be_linked(lab, engine):
    slots, penalty = ipywidgets.IntSlider(min=8, max=64), ipywidgets.FloatSlider(min=0, max=1)
    ipywidgets.link((lab, "slots"), (slots, "value"))
    assert slots.value == 16
    slots.value = 30
    assert engine.cache.slots == 30
    lab.routing = "cache-prior"
    ipywidgets.link((lab, "penalty"), (penalty, "value"))
    penalty.value = 0.25
    assert engine.routing.values()["penalty"] == 0.25


def test_the_bandwidth_of_a_simulated_disk_is_a_knob(monkeypatch, engine):
    engine.disk = FakeDisk()
    board = Lab(engine)
    assert (board.bandwidth, board.offered["simulated"]) == (200.0, True)
    board.bandwidth = 500.0
    assert engine.disk.bandwidth == 500e6
    assert board.disk == "simulated disk, 500 MB/s"
    board.close()


def test_reset_empties_the_cache(lab, engine):
    lab.start("a", max_new_tokens=5)
    lab.result(5)
    lab.reset()
    assert not engine.telemetry.resident.any()


def test_changes_leave_marks_once_there_is_a_line_to_mark(lab, engine):
    lab.slots = 33
    assert lab._session.history.marks() == []
    lab.start("a", max_new_tokens=1)
    lab.result(5)
    lab.slots = 20
    lab.routing = "cache-prior"
    assert [m["words"] for m in lab._session.history.marks()] == ["20 slots", "cache-prior penalty 0.5, keep_top 1"]
    lab.penalty = 0.25
    assert [m["words"] for m in lab._session.history.marks()] == ["20 slots", "cache-prior penalty 0.25, keep_top 1"]
    lab.start("a", max_new_tokens=30)
    lab.result(5)
    lab.penalty = 0.75
    lab.penalty = 0.5
    assert [m["words"] for m in lab._session.history.marks()][2:] == ["penalty 0.5"]
    lab.penalty = 0.25                                 # back where the drag began
    assert [m["words"] for m in lab._session.history.marks()][2:] == ["penalty 0.25"]


# ------------------------------------------------------------------------------- two dashboards, errors


def test_two_dashboards_on_one_engine_show_one_truth(lab, engine, until):
    other = Lab(engine)
    lab.start("a", max_new_tokens=10_000)
    assert other.state == "running"
    other.slots = 44
    until(lambda: lab.slots == 44)
    with pytest.raises(BusyError):
        other.start("b")
    other.stop()
    assert (lab.state, other.state) == ("stopped", "stopped")
    other.close()


def test_closing_one_of_two_leaves_the_run_and_closing_the_last_ends_it(engine, until):
    one, two = Lab(engine), Lab(engine)
    one.start("a", max_new_tokens=100_000)
    one.close()
    at = engine.telemetry.token
    until(lambda: engine.telemetry.token > at + 2)
    two.close()
    until(lambda: not engine.busy)


def test_an_exception_pauses_the_run_is_shown_with_its_line_and_raised_by_result(lab, engine, until):
    engine.fail_at = 6
    lab.start("a", max_new_tokens=12)
    until(lambda: lab.state == "paused")
    assert "ZeroDivisionError" in lab.error
    assert "fake_engine.py, line" in lab.error
    with pytest.raises(ZeroDivisionError):
        lab.result(5)


def test_after_an_exception_the_run_can_go_on(lab, engine, until):
    engine.fail_at = 6
    lab.start("a", max_new_tokens=12)
    until(lambda: lab.state == "paused")
    lab.resume()
    assert len(lab.result(5).ids) == 12
    assert lab.error == ""


def test_result_without_a_run_says_what_to_type(lab):
    with pytest.raises(SettingError, match=r"lab\.start"):
        lab.result()


# ------------------------------------------------------------------------------------------ messages


def test_the_first_picture_of_a_run_brings_its_prompt_whatever_is_typed_meanwhile(lab, engine, until):
    messages = sent(lab)
    lab.start("def f(", max_new_tokens=100_000)
    lab.prompt = "class A:"
    until(lambda: len(messages) > 2)
    assert [m[0]["prompt"] for m in messages if "prompt" in m[0]] == ["def f("]
    lab.stop()
    lab.start([1, 2, 3], max_new_tokens=3)
    lab.result(5)
    assert messages[-1][0]["prompt"] == "[3 token ids]\n"


def test_a_view_that_says_hello_gets_everything_from_the_beginning(lab, engine):
    lab.start("a", max_new_tokens=30)
    lab.result(5)
    messages = sent(lab)
    lab._heard(lab, {"hello": 1}, [])
    content, buffers = messages[0]
    assert content["k"] == "full"
    assert content["text"][0] == 0
    assert len(content["text"][1]) == 30
    assert len(buffers[0]) == 32 + 6 * 64


def test_a_cell_is_described_when_the_page_asks_and_pictures_do_not_carry_it(lab, engine):
    lab.routing = "cache-prior"
    lab.start("a", max_new_tokens=30)
    lab.result(5)
    messages = sent(lab)
    now = engine.telemetry.snapshot()
    expert = int(now.uses[2].argmax())
    lab._heard(lab, {"look": [2, expert]}, [])
    cell = messages[0][0]["cell"]
    assert (cell["layer"], cell["expert"]) == (2, expert)
    assert (cell["uses"], cell["hits"]) == (now.uses[2, expert], now.hits[2, expert])
    assert cell["before"] == 1 + (now.logits[2] > now.logits[2, expert]).sum()
    raised = now.logits[2] + 3 * engine.telemetry.before[2]
    assert cell["after"] == 1 + (raised > raised[expert]).sum()
    assert cell["age"] == 29 - now.last_use[2, expert]
    lab._session.show()
    assert "cell" not in messages[-1][0]


def test_a_cell_has_no_rank_before_the_first_token(lab, engine):
    messages = sent(lab)
    lab._heard(lab, {"look": [0, 0]}, [])
    cell = messages[0][0]["cell"]
    assert (cell["before"], cell["after"], cell["age"]) == (0, 0, -1)


@pytest.mark.parametrize("message", [None, 3, {}, {"do": "explode"}, {"do": ["run"]}, {"look": [999, -5]}, {"look": None},
                                     {"look": ["a", 1]}, {"look": [1]}, {"ack": 10**12}, {"ack": None}, {"ack": "x"}])
def test_no_message_of_a_page_does_harm(lab, message):
    lab._heard(lab, message, [])
    assert lab.state == "ready"


def test_a_refusal_of_run_reaches_the_page_as_text(lab):
    lab.prompt = ""
    lab._heard(lab, {"do": "run"}, [])
    assert "empty" in lab.error


def test_without_a_page_the_generator_is_not_held_up(lab, engine):
    engine.token_s = 0
    messages = sent(lab)
    lab.start("a", max_new_tokens=3000)
    assert len(lab.result(30).ids) == 3000
    assert len(messages) < 40


def test_pictures_come_at_the_rate_that_was_asked_for(lab, engine):
    lab.fps = 20
    lab._page.outbox.patient = False
    stamps = []
    lab.send = lambda content, buffers=None: (stamps.append(time.monotonic()), lab._page.outbox.heard(lab._page.outbox.sequence))
    lab.start("a", max_new_tokens=400)
    lab.result(20)
    rate = (len(stamps) - 2) / (stamps[-2] - stamps[0])
    assert len(stamps) > 4
    assert rate < 21


# --------------------------------------------------------------------------------------------- saving


def test_a_saved_notebook_holds_a_picture_and_a_sentence(lab, engine):
    lab.start("a", max_new_tokens=30)
    lab.result(5)
    bundle = lab._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", "application/vnd.jupyter.widget-view+json"}
    assert len(bundle["text/plain"]) <= 120
    assert "30 tokens" in bundle["text/plain"]
    data = base64.b64decode(bundle["image/png"])
    assert len(data) < 30_000
    assert Image.open(io.BytesIO(data)).size[0] > 600


def test_the_picture_shows_who_is_resident(engine):
    board = Lab(engine)
    empty = np.asarray(Image.open(io.BytesIO(board.png())).convert("RGB"))
    engine.telemetry.resident[:] = True
    full = np.asarray(Image.open(io.BytesIO(board.png())).convert("RGB"))

    def blue(picture: np.ndarray) -> int:
        return int(((picture[..., 2].astype(int) - picture[..., 0]) > 60).sum())

    assert blue(empty) == 0
    assert blue(full) > 30_000
    board.close()


@pytest.mark.parametrize(("L", "E"), [(1, 4), (48, 128), (24, 60)])
def test_the_picture_fits_any_model(monkeypatch, L, E):
    from fake_engine import TABLES

    from moe_lab_widgets import controls

    monkeypatch.setattr(controls, "shipped", lambda: TABLES)
    board = Lab(FakeEngine(L=L, E=E, K=2, slots=4))
    board.start("a", max_new_tokens=10)
    board.result(5)
    assert len(board.png()) < 30_000
    board.close()


def test_the_table_has_a_row_for_each_expert(lab, engine):
    lab.start("a", max_new_tokens=10)
    lab.result(5)
    frame = lab.to_frame()
    assert len(frame) == 6 * 64
    assert frame.resident.sum() == engine.telemetry.resident.sum()


def test_a_terminal_gets_the_dashboard_in_letters(lab, engine):
    from rich.console import Console

    from moe_lab_widgets import terminal

    lab.start("a", max_new_tokens=10)
    lab.result(5)
    console = Console(file=io.StringIO(), width=100, record=True)
    terminal.show(lab, console)
    text = console.export_text()
    now = engine.telemetry.snapshot()
    assert text.count("●") - 1 == int((now.used & now.resident & ~now.loaded).sum())
    assert "tokens/s" in text
    assert "fibonacci" in text


def test_a_loop_in_a_terminal_keeps_the_panel_up_to_date(lab, engine):
    from rich.console import Console

    from moe_lab_widgets import terminal

    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    steps = list(terminal.shown(lab, engine.stream("a", max_new_tokens=5), console))
    assert len(steps) == 5
    assert "MoE Lab" in console.file.getvalue()


def test_what_code_did_without_the_dashboard_is_shown_after_its_cell(lab, engine):
    messages = sent(lab)
    engine.cache.resize(33)
    for _ in engine.stream("a", max_new_tokens=3):
        pass
    lab._after_cell()
    assert lab.slots == 33
    assert int.from_bytes(messages[-1][1][0][12:16], "little") == 3
    count = len(messages)
    lab._after_cell()
    assert len(messages) == count
