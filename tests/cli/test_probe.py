def test_it(trained, scalars):
    print(trained.result.out); print(trained.result.err)
    import subprocess
    print(subprocess.run(["find", str(trained.path)],capture_output=True,text=True).stdout)
    for k,v in scalars(trained.path).items(): print(k,v)
    print((trained.path/"metrics.jsonl").read_text())
    print((trained.path/"config.yaml").read_text())
