#!/bin/bash
# usage: ./deploy.sh          then watch journalctl for 5 min!!
set -e
PROD=root@prod
scp -P 22222 *.py requirements.txt $PROD:/opt/macd-analysis/
scp -P 22222 -r data/ml_models $PROD:/opt/macd-analysis/data/
ssh -p 22222 $PROD "cd /opt/macd-analysis && venv/bin/pip install -q -r requirements.txt"
ssh -p 22222 $PROD "systemctl restart macd-analysis macd-analysis-web"
# sleep 5 && ssh -p 22222 $PROD curl -s localhost:8080/health
