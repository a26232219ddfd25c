"""What is lost without heads, sublayers and attention between the views: `sets` names them, `sweeps` measures, `study` puts it together."""
