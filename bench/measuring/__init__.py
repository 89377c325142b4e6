"""What the benches share: programs to build, systems to run, load to put on them, figures to draw and judge."""
