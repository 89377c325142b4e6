"""Claims, one case at a time; the machine beside this file looks for orders that nobody has thought of."""

from gateway.sessions.core.resume import (
    KEEP_SECONDS,
    REPEAT_SECONDS,
    SILENCE_SECONDS,
    SKEW_SECONDS,
    Activate,
    Announce,
    Claim,
    ClaimEffect,
    ClaimKind,
    Fate,
    Forsake,
    Grant,
    Held,
    HolderState,
    Loss,
    Pass,
    Rank,
    Refuse,
    SessionClaim,
    StandDown,
    Yield,
)  # fmt: skip

NOW = 100.0
STATE = "what the holder knows"


def holder(generation: int = 5, lowest: int = 5) -> SessionClaim:
    return SessionClaim(lambda: STATE, Claim(Rank(generation, "holder"), ClaimKind.CLIENT, lowest), lowest)


def claimant(
    generation: int = 9, kind: ClaimKind = ClaimKind.CLIENT, serial: int = 5, nonce: str = "claimant"
) -> SessionClaim:
    return SessionClaim(lambda: None, Claim(Rank(generation, nonce), kind, serial), serial, held=False)


def announced(*, nobody: bool = False, kind: ClaimKind = ClaimKind.CLIENT) -> SessionClaim:
    claim = claimant(kind=kind)
    claim.announce(NOW, nobody_was_there=nobody)
    return claim


def grant(
    firm: bool = True,
    giver: str = "holder",
    state: str | None = STATE,
    taken: tuple[str, ...] = (),
    heir: str = "claimant",
    known: float = KEEP_SECONDS,
) -> Grant:
    return Grant(Rank(5, giver), firm, 5, tuple((0.1, each) for each in taken), (), state, heir, known)


def ended(claim: SessionClaim, now: float) -> Activate:
    """Let a claim end for want of answers: its last announcement comes back."""
    (last,) = claim.wake(now)
    assert isinstance(last, Announce)
    return activated(claim.hear_claim(last.claim, "own inbox", now))


def activated(effects: list[ClaimEffect]) -> Activate:
    (effect,) = effects
    assert isinstance(effect, Activate)
    return effect


def test_taken_commands_are_forgotten_after_ten_seconds() -> None:
    held = holder()
    held.take("c1", "C1", NOW)
    held.take("c2", "C2", NOW + 5)
    held.forget(NOW + 11)
    (given, _) = held.hear_claim(Claim(Rank(9, "n"), ClaimKind.CLIENT, 5), "inbox", NOW + 11)
    assert isinstance(given, Yield)
    assert [ident for _, ident in given.grant.taken] == ["c2"]


def test_holder_yields_with_its_state_and_what_it_has_taken() -> None:
    held = holder()
    assert held.take("c1", "C1", NOW) is Fate.EXECUTE
    given, down = held.hear_claim(Claim(Rank(9, "n"), ClaimKind.CLIENT, 5), "inbox", NOW + 1)
    assert isinstance(given, Yield)
    assert (given.to, given.grant.firm, given.grant.state) == ("inbox", True, STATE)
    assert given.grant.taken == ((1.0, "c1"),)
    assert down == StandDown(Loss.YIELDED)
    assert held.take("c2", "C2", NOW) is Fate.IGNORE
    again = held.hear_claim(Claim(Rank(9, "n"), ClaimKind.CLIENT, 5), "inbox", NOW + 2)
    assert again == [given]
    assert held.hear_claim(Claim(Rank(10, "m"), ClaimKind.CLIENT, 5), "other", NOW + 2) == []


def test_holder_forgets_what_was_taken_long_ago() -> None:
    held = holder()
    held.take("old", "OLD", NOW)
    held.take("new", "NEW", NOW + 60)
    given = held.hear_claim(Claim(Rank(9, "n"), ClaimKind.CLIENT, 5), "inbox", NOW + 61)[0]
    assert isinstance(given, Yield)
    assert [ident for _, ident in given.grant.taken] == ["new"]


def test_holder_refuses_a_spent_token_and_a_lower_rank() -> None:
    held = holder()
    assert held.hear_claim(Claim(Rank(9, "n"), ClaimKind.CLIENT, 4), "inbox", NOW) == [Refuse("inbox")]
    assert held.hear_claim(Claim(Rank(4, "n"), ClaimKind.CLIENT, 5), "inbox", NOW) == [Held("inbox", 5)]
    assert held.standing is HolderState.ACTIVE


def test_claimant_executes_what_the_holder_has_not_taken_once() -> None:
    claim = announced()
    for ident in ("c1", "c2", "c2", "c3"):
        assert claim.take(ident, ident.upper(), NOW) is Fate.KEEP
    result = activated(claim.hear_grant(grant(taken=("c1",)), NOW))
    assert (result.state, result.resumed, result.execute, result.lose) == (STATE, True, ["C2", "C3"], [])
    assert claim.rank.generation == 9
    assert claim.take("c4", "C4", NOW) is Fate.EXECUTE


def test_repeated_grant_is_nothing_new_and_a_late_one_is_forsaken() -> None:
    claim = announced()
    claim.hear_grant(grant(), NOW)
    assert claim.hear_grant(grant(), NOW) == []
    assert claim.hear_grant(grant(giver="somebody else"), NOW) == [Forsake([STATE])]


def test_silence_loses_what_a_former_holder_may_have_executed() -> None:
    claim = announced()
    claim.take("early", "EARLY", NOW + SKEW_SECONDS / 2)
    claim.take("later", "LATER", NOW + 2 * SKEW_SECONDS)
    assert claim.wake(NOW + SILENCE_SECONDS - 0.01) == [
        Announce(claim.claim, NOW + SILENCE_SECONDS),
    ]
    result = ended(claim, NOW + SILENCE_SECONDS)
    assert (result.resumed, result.lose, result.execute) == (False, ["EARLY"], ["LATER"])


def test_claim_is_repeated() -> None:
    claim = announced()
    assert claim.wake(NOW + REPEAT_SECONDS) == [Announce(claim.claim, NOW + 2 * REPEAT_SECONDS)]


def test_proof_that_nobody_was_there_ends_the_wait_and_loses_nothing() -> None:
    claim = announced(nobody=True)
    claim.take("early", "EARLY", NOW)
    assert claim.hear_claim(claim.claim, "own inbox", NOW) == []
    result = activated(claim.wake(NOW + SKEW_SECONDS))
    assert (result.resumed, result.lose, result.execute) == (False, [], ["EARLY"])


def test_grant_that_is_not_firm_teaches_and_ends_nothing() -> None:
    claim = announced()
    claim.take("c1", "C1", NOW + 1)
    assert claim.hear_grant(grant(firm=False, taken=("c1",)), NOW) == []
    result = ended(claim, NOW + SILENCE_SECONDS)
    assert (result.state, result.resumed, result.execute) == (STATE, True, [])


def test_lower_rival_hands_over_and_passes_on_what_comes_late() -> None:
    claim = announced()
    claim.take("c1", "C1", NOW)
    given, down = claim.hear_claim(Claim(Rank(10, "rival"), ClaimKind.CLIENT, 5), "inbox", NOW)
    assert isinstance(given, Yield)
    assert (given.grant.firm, [kept.message for kept in given.grant.kept]) == (False, ["C1"])
    assert down == StandDown(Loss.YIELDED)
    assert claim.hear_grant(grant(), NOW) == [Pass("inbox", grant(heir="rival"))]


def test_commands_of_a_rival_that_yields_are_executed_only_if_that_is_safe() -> None:
    rival = announced()
    rival.take("c1", "C1", NOW)
    given = rival.hear_claim(Claim(Rank(10, "higher"), ClaimKind.CLIENT, 5), "inbox", NOW)[0]
    assert isinstance(given, Yield)
    for firm, lose, execute in ((True, [], ["C1"]), (False, ["C1"], [])):
        claim = claimant(10, nonce="higher")
        claim.announce(NOW, nobody_was_there=False)
        effects = claim.hear_grant(given.grant._replace(firm=firm), NOW + 1)
        result = activated(effects) if effects else ended(claim, NOW + SILENCE_SECONDS)
        assert (result.lose, result.execute) == (lose, execute)


def test_higher_rival_repeats_its_claim_once_it_has_made_it() -> None:
    claim = claimant()
    lower = Claim(Rank(8, "rival"), ClaimKind.CLIENT, 5)
    assert claim.hear_claim(lower, "inbox", NOW) == []
    claim.announce(NOW, nobody_was_there=False)
    assert claim.hear_claim(lower, "inbox", NOW) == [Announce(claim.claim, NOW + REPEAT_SECONDS)]


def test_client_is_above_gateways_that_only_keep_the_session() -> None:
    for kind in (ClaimKind.PEER, ClaimKind.HOLDER):
        claim = announced()
        (effect,) = claim.hear_claim(Claim(Rank(50, "other"), kind), "inbox", NOW)
        assert isinstance(effect, Announce)
        assert effect.claim.rank == Rank(51, "claimant")


def test_client_claims_above_a_holder_of_a_higher_rank() -> None:
    claim = announced()
    (effect,) = claim.hear_held(20, NOW + 1)
    assert isinstance(effect, Announce)
    assert effect.claim.rank.generation == 21
    assert claim.hear_held(20, NOW + 1) == []


def test_spent_token_ends_the_claim() -> None:
    assert announced().hear_refusal() == [StandDown(Loss.SPENT)]


def test_holder_in_doubt_keeps_commands_and_goes_on_if_nobody_objects() -> None:
    held = holder()
    (effect,) = held.doubt(NOW, has_client=True)
    assert isinstance(effect, Announce)
    assert effect.claim == Claim(Rank(5, "holder.1"), ClaimKind.HOLDER)
    assert held.take("c1", "C1", NOW) is Fate.KEEP
    result = ended(held, NOW + SILENCE_SECONDS)
    assert (result.state, result.resumed, result.execute, result.lose) == (None, True, ["C1"], [])


def test_holder_in_doubt_without_its_client_loses_what_another_may_have_executed() -> None:
    held = holder()
    held.doubt(NOW, has_client=False)
    held.take("c1", "C1", NOW)
    held.take("c2", "C2", NOW + 2 * SKEW_SECONDS)
    result = ended(held, NOW + SILENCE_SECONDS)
    assert (result.lose, result.execute) == (["C1"], ["C2"])


def test_holder_in_doubt_stands_down_for_a_newer_one_and_grants_to_a_client() -> None:
    held = holder()
    held.doubt(NOW, has_client=True)
    assert held.hear_held(7, NOW) == [StandDown(Loss.HELD)]
    other = holder()
    other.doubt(NOW, has_client=True)
    assert other.hear_claim(Claim(Rank(1, "n"), ClaimKind.CLIENT, 4), "inbox", NOW) == [Refuse("inbox")]
    given = other.hear_claim(Claim(Rank(1, "n"), ClaimKind.CLIENT, 5), "inbox", NOW)[0]
    assert isinstance(given, Yield)
    assert (given.grant.firm, given.grant.state) == (False, STATE)


def test_break_during_a_claim_ends_the_proof_and_what_was_kept_is_lost() -> None:
    for breaks_before in (True, False):
        claim = claimant()
        claim.take("c1", "C1", NOW)
        if breaks_before:
            assert claim.doubt(NOW, has_client=True) == []
        claim.announce(NOW, nobody_was_there=True)
        if not breaks_before:
            (again,) = claim.doubt(NOW, has_client=True)
            assert isinstance(again, Announce)
        assert isinstance(claim.wake(NOW + SKEW_SECONDS)[0], Announce)
        result = ended(claim, NOW + SILENCE_SECONDS)
        assert (result.lose, result.execute) == (["C1"], [])


def test_silence_is_no_answer_while_the_own_claim_does_not_come_back() -> None:
    """The connection may have broken without a sign."""
    claim = announced()
    for number in range(20):
        (again,) = claim.wake(NOW + SILENCE_SECONDS + number)
        assert isinstance(again, Announce)
    assert claim.standing is HolderState.CLAIMING


def test_proof_is_worth_nothing_before_the_own_claim_has_come_back() -> None:
    claim = announced(nobody=True)
    assert claim.wake(NOW + SKEW_SECONDS) == [Announce(claim.claim, NOW + SKEW_SECONDS + SILENCE_SECONDS)]
    activated(claim.hear_claim(claim.claim, "own inbox", NOW + 1))


def test_former_claims_of_its_own_end_nothing() -> None:
    claim = announced()
    former = claim.claim
    claim.doubt(NOW, has_client=True)
    claim.wake(NOW + SILENCE_SECONDS)
    assert claim.hear_claim(former, "own inbox", NOW + SILENCE_SECONDS) == []


def test_grant_for_a_claim_from_before_a_break_only_teaches() -> None:
    """A rival that heard nothing of either may be the holder by now."""
    claim = announced()
    claim.doubt(NOW, has_client=True)
    assert claim.hear_grant(grant(), NOW) == []
    assert ended(claim, NOW + SILENCE_SECONDS).state == STATE


def test_heir_that_claims_again_after_a_break_gets_its_grant_again() -> None:
    held = holder()
    claim = announced()
    given = held.hear_claim(claim.claim, "inbox", NOW)[0]
    claim.doubt(NOW, has_client=True)
    assert held.hear_claim(claim.claim, "inbox", NOW) == [given]


def test_command_that_comes_after_the_grant_that_has_it_is_not_executed_again() -> None:
    claim = announced()
    claim.hear_grant(grant(taken=("c1",)), NOW)
    assert claim.take("c1", "C1", NOW + SKEW_SECONDS) is Fate.IGNORE
    claim.forget(NOW + KEEP_SECONDS + 1)
    assert claim.take("c1", "C1", NOW + KEEP_SECONDS + 1) is Fate.EXECUTE


def test_message_that_was_kept_for_long_is_the_holders_to_answer() -> None:
    claim = announced()
    claim.take("old", "OLD", NOW)
    claim.take("new", "NEW", NOW + 1.5)
    result = activated(claim.hear_grant(grant(), NOW + KEEP_SECONDS + 1))
    assert (result.lose, result.execute) == ([], ["NEW"])


def test_message_from_before_all_that_the_holder_knows_is_not_executed() -> None:
    claim = announced()
    claim.take("old", "OLD", NOW)
    claim.take("new", "NEW", NOW + 1.5)
    result = activated(claim.hear_grant(grant(known=1), NOW + 2))
    assert (result.lose, result.execute) == ([], ["NEW"])


def test_peer_keeps_no_session_of_which_nothing_is_left() -> None:
    for nobody in (True, False):
        claim = announced(nobody=nobody, kind=ClaimKind.PEER)
        claim.wake(NOW + SILENCE_SECONDS)
        assert claim.hear_claim(claim.claim, "own inbox", NOW + SILENCE_SECONDS) == [StandDown(Loss.HELD)]
    assert announced(kind=ClaimKind.PEER).hear_grant(grant(state=None), NOW) == [StandDown(Loss.HELD)]


def test_own_claim_that_comes_back_changes_nothing() -> None:
    claim = announced()
    assert claim.hear_claim(claim.claim, "inbox", NOW) == []
    held = holder()
    assert held.hear_claim(Claim(Rank(9, "holder"), ClaimKind.CLIENT, 5), "inbox", NOW) == []
