cd /work/lab/ncnn
/work/venv/bin/python tt.py
/work/venv/bin/python runner.py ncnn out/2x_{sq,nz,ln,red} -r=4 | grep " 7 "
/work/venv/bin/python tt.py
