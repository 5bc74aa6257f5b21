"""Fuzz targets: `make fuzz` looks for inputs that break what a target promises.

Each target is a module with

``check(octets)``  raises AssertionError, or whatever the program raised, if the input is a defect
``seeds()``        inputs to begin with
``WORDS``          what the fuzzer may put into an input as a whole

`run.py` lists and runs them.  What is kept below `inputs/TARGET` is checked by
`tests/test_fuzz_inputs.py` each time the tests run.
"""
