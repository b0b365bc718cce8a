from gmf_platform.distributed.collect import from_first, to_first


def test_alone():
    assert to_first({"a": 1}) == [{"a": 1}]
    assert from_first("x") == "x"


def test_three_processes(run_processes):
    """Parts of unequal size, one empty, in the order of ranks."""

    def share(rank):
        return to_first("x" * 1000 * rank), from_first({"rank": rank})

    first, *others = run_processes(share, 3)
    assert first == (["", "x" * 1000, "x" * 2000], {"rank": 0})
    assert others == [(None, {"rank": 0})] * 2
