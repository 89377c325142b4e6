"""The parts that all benches share: building programs, running systems, load, figures and bars."""
